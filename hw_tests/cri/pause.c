/* The only process of a test's pod sandbox: does nothing, and reaps what is left to it as pid 1. */
#include <signal.h>
#include <unistd.h>

int main(void) {
    signal(SIGCHLD, SIG_IGN);
    for (;;)
        pause();
}
