/*
 * The executable that a container runtime execs as a CNI plugin. It decides nothing: the environment of the
 * call, its stdin and the opened network namespace go to the node agent over a unix socket, the answer of the
 * agent goes to stdout and into the exit code. The frames are described in ../wire.py.
 *
 * By itself it answers VERSION, and errors for calls that did not get through. It sends a request at most
 * once, and no failure here ends in exit code 0: whether a DEL succeeded is for the agent alone to say.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef SOCKET_PATH
#define SOCKET_PATH "/run/sriov-underlay/cni.sock"
#endif
#ifndef CONNECT_TIMEOUT_MS
#define CONNECT_TIMEOUT_MS 10000 /* an agent that restarts is back by then */
#endif
#ifndef REPLY_TIMEOUT_MS
#define REPLY_TIMEOUT_MS 50000 /* the whole call; the strictest runtime kills it after 60 s */
#endif
#define STATUS_CONNECT_TIMEOUT_MS 250 /* "not now" is an answer too, but a full backlog passes */
#define OUTPUT_TIMEOUT_MS 2000
#define RETRY_MS 50

enum { REQUEST_HEADER = 20, REPLY_HEADER = 12, ENV_MAX = 64 << 10, STDIN_MAX = 1 << 20, REPLY_MAX = 1 << 20 };
enum { BAD_ENV = 4, IO_FAILURE = 5, BAD_CONFIG = 7, TRY_LATER = 11, NOT_AVAILABLE = 50 }; /* of CNI errors */

static const char magic[4] = {'S', 'U', 'v', '1'};
static const char version[] =
    "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n";
static char frame[REQUEST_HEADER + ENV_MAX + STDIN_MAX + 1]; /* the request, later the reply */
static int no_answer = TRY_LATER;                            /* the code when the agent does not answer */

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* 1 when fd can be used (or has an error: the next call on it tells which), 0 with errno otherwise. */
static int ready(int fd, short events, int64_t deadline) {
    struct pollfd p = {.fd = fd, .events = events};
    for (int64_t left; (left = deadline - now_ms()) > 0;) {
        int n = poll(&p, 1, left);
        if (n > 0 || (n < 0 && errno != EINTR))
            return n > 0;
    }
    errno = ETIMEDOUT;
    return 0;
}

/* Did a call fail for good? If it was interrupted or would have blocked, it is made again. */
static int failed(ssize_t n) {
    return n < 0 && errno != EINTR && errno != EAGAIN;
}

static int print(const char *text, size_t size) {
    int64_t deadline = now_ms() + OUTPUT_TIMEOUT_MS;
    for (size_t done = 0; done < size;) {
        /* a writable pipe takes PIPE_BUF bytes without blocking, but not necessarily more */
        size_t part = size - done < PIPE_BUF ? size - done : PIPE_BUF;
        ssize_t n = ready(STDOUT_FILENO, POLLOUT, deadline) ? write(STDOUT_FILENO, text + done, part) : -1;
        if (failed(n))
            return -1;
        done += n > 0 ? n : 0;
    }
    return 0;
}

/* Append text as the inside of a JSON string, at most 6 bytes for each of its own. Returns the new end. */
static char *append_escaped(char *out, const char *text) {
    for (; *text; text++) {
        unsigned char c = *text;
        if (c == '"' || c == '\\')
            out += sprintf(out, "\\%c", c);
        else if (c < 0x20)
            out += sprintf(out, "\\u%04x", c);
        else if (c >= 0x7f) /* need not be UTF-8: show the byte */
            out += sprintf(out, "\\\\x%02x", c);
        else
            *out++ = c;
    }
    return out;
}

/* Print a CNI error object and exit. `details` is a literal or strerror(): shorter than 256 bytes. */
__attribute__((format(printf, 3, 4)))
static _Noreturn void fail(int code, const char *details, const char *format, ...) {
    char msg[512], out[6 * (sizeof msg + 256) + 128], *end = out;
    va_list args;
    va_start(args, format);
    vsnprintf(msg, sizeof msg, format, args);
    va_end(args);
    end += sprintf(end, "{\"cniVersion\":\"1.1.0\",\"code\":%d,\"msg\":\"", code);
    end = append_escaped(end, msg);
    end += sprintf(end, "\",\"details\":\"");
    end = append_escaped(end, details);
    end += sprintf(end, "\"}\n");
    print(out, end - out);
    _exit(1);
}

static void check_command(const char *command) {
    static const char *const known[] = {"ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"};
    for (size_t i = 0; command && i < sizeof known / sizeof *known; i++)
        if (!strcmp(command, known[i]))
            return;
    const char *hint = "a container runtime sets it to ADD, DEL, CHECK, GC, STATUS or VERSION";
    if (!command || !*command)
        fail(BAD_ENV, hint, "CNI_COMMAND is not set");
    fail(BAD_ENV, hint, "CNI_COMMAND: unknown command \"%.64s\"", command);
}

static size_t collect_env(char *out) {
    size_t used = 0;
    for (char **p = environ; *p; p++) {
        size_t size = strlen(*p) + 1;
        if (strncmp(*p, "CNI_", 4) && strncmp(*p, "TRACEPARENT=", 12) && strncmp(*p, "TRACESTATE=", 11) &&
            strncmp(*p, "BAGGAGE=", 8))
            continue;
        if (size > ENV_MAX - used)
            fail(BAD_ENV, "", "%.64s...: the CNI_* variables take more than %d bytes", *p, ENV_MAX);
        memcpy(out + used, *p, size);
        used += size;
    }
    return used;
}

static size_t read_stdin(char *out, int64_t deadline) {
    size_t used = 0;
    while (!isatty(STDIN_FILENO)) { /* run by hand: nobody is going to type a config */
        size_t room = STDIN_MAX + 1 - used; /* one byte more than allowed, to see that it is too much */
        ssize_t n = ready(STDIN_FILENO, POLLIN, deadline) ? read(STDIN_FILENO, out + used, room) : -1;
        if (n == 0 || (n < 0 && errno == EBADF))
            break;
        if (failed(n))
            fail(IO_FAILURE, strerror(errno), "cannot read the network config from stdin");
        used += n > 0 ? n : 0;
        if (used > STDIN_MAX)
            fail(BAD_CONFIG, "", "the network config on stdin is larger than %d bytes", STDIN_MAX);
    }
    return used;
}

/* CNI_NETNS, opened; or -1, and *why is the errno, 0 if there is none to open. */
static int open_netns(uint32_t *why) {
    const char *path = getenv("CNI_NETNS");
    int fd = -1, given = path && *path;
    while (given && (fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)) < 0 && errno == EINTR)
        continue; /* O_NONBLOCK: should the path name a FIFO, opening it must not wait for a writer */
    *why = given && fd < 0 ? errno : 0;
    return fd;
}

static int connect_agent(const char *path, int64_t deadline) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        fail(BAD_ENV, "a path has at most 107 bytes", "SRIOV_UNDERLAY_SOCKET is too long: %.64s", path);
    memcpy(address.sun_path, path, strlen(path) + 1);
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    while (sock < 0 || connect(sock, (struct sockaddr *)&address, sizeof address) < 0) {
        /* not there yet, just gone, backlog full: these pass; nothing else does */
        int passing = errno == ENOENT || errno == ECONNREFUSED || errno == EAGAIN || errno == EINTR;
        if (sock < 0 || !passing || now_ms() + RETRY_MS > deadline)
            fail(no_answer, strerror(errno), "cannot reach the node agent at %s", path);
        poll(NULL, 0, RETRY_MS);
    }
    return sock;
}

static void send_request(int sock, size_t size, int netns, int64_t deadline) {
    union { struct cmsghdr header; char bytes[CMSG_SPACE(sizeof netns)]; } control = {
        .header = {.cmsg_len = CMSG_LEN(sizeof netns), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    memcpy(CMSG_DATA(&control.header), &netns, sizeof netns);
    for (size_t done = 0; done < size;) {
        struct iovec rest = {frame + done, size - done};
        struct msghdr message = {.msg_iov = &rest, .msg_iovlen = 1};
        if (netns >= 0 && done == 0) { /* the descriptor goes with the first byte */
            message.msg_control = &control;
            message.msg_controllen = sizeof control;
        }
        ssize_t n = ready(sock, POLLOUT, deadline) ? sendmsg(sock, &message, MSG_NOSIGNAL) : -1;
        if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
            return; /* it may have answered before it closed: read on */
        if (failed(n))
            fail(no_answer, strerror(errno), "cannot send the request to the node agent");
        done += n > 0 ? n : 0;
    }
}

static void receive(int sock, char *out, size_t size, int64_t deadline) {
    for (size_t done = 0; done < size;) {
        ssize_t n = ready(sock, POLLIN, deadline) ? recv(sock, out + done, size - done, 0) : -1;
        if (n < 0 && errno == ETIMEDOUT)
            fail(no_answer, "", "the node agent did not answer within %d ms", REPLY_TIMEOUT_MS);
        if (n == 0 || failed(n))
            fail(no_answer, n ? strerror(errno) : "", "the node agent went away before it had answered");
        done += n > 0 ? n : 0;
    }
}

int main(void) {
    int64_t deadline = now_ms() + REPLY_TIMEOUT_MS;
    signal(SIGPIPE, SIG_IGN);
    for (int fd = 0; fd <= STDERR_FILENO; fd++) /* or the socket could become stdout */
        if (fcntl(fd, F_GETFD) < 0)
            open("/dev/null", O_RDWR);
    const char *command = getenv("CNI_COMMAND"), *path = getenv("SRIOV_UNDERLAY_SOCKET");
    check_command(command);
    if (!strcmp(command, "VERSION"))
        return print(version, sizeof version - 1) ? 1 : 0;
    no_answer = !strcmp(command, "STATUS") ? NOT_AVAILABLE : TRY_LATER;

    uint32_t netns_errno;
    size_t env_size = collect_env(frame + REQUEST_HEADER);
    size_t stdin_size = read_stdin(frame + REQUEST_HEADER + env_size, deadline);
    int netns = open_netns(&netns_errno);
    uint32_t head[] = {htonl(env_size), htonl(stdin_size), htonl(netns_errno), htonl(netns >= 0)};
    memcpy(frame, magic, sizeof magic);
    memcpy(frame + sizeof magic, head, sizeof head);
    int64_t soon = now_ms() + (no_answer == TRY_LATER ? CONNECT_TIMEOUT_MS : STATUS_CONNECT_TIMEOUT_MS);
    int sock = connect_agent(path && *path ? path : SOCKET_PATH, soon < deadline ? soon : deadline);
    send_request(sock, REQUEST_HEADER + env_size + stdin_size, netns, deadline);

    uint32_t reply[2]; /* exit code, size of stdout */
    receive(sock, frame, REPLY_HEADER, deadline);
    memcpy(reply, frame + sizeof magic, sizeof reply);
    uint32_t code = ntohl(reply[0]), size = ntohl(reply[1]);
    if (memcmp(frame, magic, sizeof magic) || code > 255 || size > REPLY_MAX)
        fail(no_answer, "is it of the release of this plugin?", "the answer of the node agent is malformed");
    receive(sock, frame, size, deadline);
    return print(frame, size) ? 1 : (int)code;
}
