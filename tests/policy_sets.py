"""Sets of policies for the truth table, in the form of `policy_world.states`."""

SETS: dict[str, str] = {
    # -- isolation
    "no policy": "{}",
    "deny all in": "x/p: {podSelector: {}, policyTypes: [Ingress]}",
    "deny all out": "x/p: {podSelector: {}, policyTypes: [Egress]}",
    "deny all both ways": "x/p: {podSelector: {}, policyTypes: [Ingress, Egress]}",
    "no types: ingress alone": "x/p: {podSelector: {}}",
    "no types, egress rules: both": "x/p: {podSelector: {}, egress: [{to: [{podSelector: {}}]}]}",
    "no types, empty egress: ingress alone": "x/p: {podSelector: {}, egress: []}",
    "empty list of types": "x/p: {podSelector: {}, policyTypes: [], egress: [{}]}",
    "egress alone, with ingress rules that mean nothing": """
        x/p:
          podSelector: {matchLabels: {pod: a}}
          policyTypes: [Egress]
          ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]
          egress: [{to: [{podSelector: {matchLabels: {pod: c}}}]}]
        """,
    "ingress alone, with egress rules that mean nothing": """
        x/p:
          podSelector: {}
          policyTypes: [Ingress]
          egress: [{to: [{podSelector: {}}]}]
        """,
    "allow all in": "x/p: {podSelector: {}, ingress: [{}]}",
    "allow all out": "x/p: {podSelector: {}, policyTypes: [Egress], egress: [{}]}",
    "absent lists are null": "x/p: {podSelector: {}, ingress: [{from: null, ports: null}], egress: null}",
    "empty lists allow everything": "x/p: {podSelector: {}, ingress: [{from: [], ports: []}]}",
    "deny all, and one that allows": """
        x/deny: {podSelector: {}, policyTypes: [Ingress, Egress]}
        x/allow:
          podSelector: {matchLabels: {pod: a}}
          ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]
        """,
    "deny all, and all that allow what is between": """
        x/deny: {podSelector: {}, policyTypes: [Ingress, Egress]}
        x/out: {podSelector: {matchLabels: {pod: b}}, policyTypes: [Egress], egress: [{ports: [{port: 80}]}]}
        x/in: {podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 80}, {port: 81}]}]}
        """,
    "both ends must allow": """
        x/p:
          podSelector: {}
          policyTypes: [Egress]
          egress: [{to: [{namespaceSelector: {matchLabels: {ns: y}}}]}]
        y/p:
          podSelector: {matchLabels: {pod: a}}
          ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]
        """,
    "a union of policies": """
        x/p80: {podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 80}]}]}
        x/from-y: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}]}
        x/from-c:
          podSelector: {matchLabels: {tier: web}}
          ingress: [{from: [{podSelector: {matchLabels: {pod: c}}}]}]
        """,
    "a union of rules": """
        x/p:
          podSelector: {}
          ingress:
          - {from: [{podSelector: {matchLabels: {pod: a}}}], ports: [{port: 80}]}
          - {from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 81, protocol: UDP}]}
          - {from: [{ipBlock: {cidr: 10.0.0.33/32}}]}
        """,
    # -- selectors
    "an empty pod selector is this namespace": """
        x/p: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}
        """,
    "an empty namespace selector is all pods, and nobody else": """
        x/p: {podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}
        """,
    "by a label of the pod": """
        x/p:
          podSelector: {matchLabels: {pod: a}}
          ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]
        """,
    "labels are all to match": """
        x/p: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {tier: web, pod: b}}}]}]}
        """,
    "by a label of the namespace": """
        x/p: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}]}
        """,
    "both selectors in one peer": """
        x/p:
          podSelector: {}
          ingress:
          - from: [{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: b}}}]
        """,
    "both selectors in two peers": """
        x/p:
          podSelector: {}
          ingress:
          - from: [{namespaceSelector: {matchLabels: {ns: y}}}, {podSelector: {matchLabels: {pod: b}}}]
        """,
    "both selectors, egress": """
        x/p:
          podSelector: {matchLabels: {pod: a}}
          policyTypes: [Egress]
          egress:
          - to: [{namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {pod: c}}}]
        """,
    "In": """
        x/p:
          podSelector: {matchExpressions: [{key: pod, operator: In, values: [a, c]}]}
          ingress: [{from: [{podSelector: {matchExpressions: [{key: pod, operator: In, values: [b, d]}]}}]}]
        """,
    "NotIn": """
        x/p:
          podSelector: {}
          ingress:
          - from:
            - namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [y]}]}
              podSelector: {matchExpressions: [{key: pod, operator: NotIn, values: [a, b]}]}
        """,
    "NotIn matches who has no such label": """
        x/p:
          podSelector: {}
          ingress:
          - from:
            - namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [blue, red]}]}
        """,
    "Exists, also of an empty value": """
        x/p:
          podSelector: {matchExpressions: [{key: canary, operator: Exists}]}
          ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: team, operator: Exists}]}}]}]
        """,
    "DoesNotExist": """
        x/p:
          podSelector: {matchExpressions: [{key: canary, operator: DoesNotExist}]}
          ingress:
          - from:
            - namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}
              podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}
        """,
    "several expressions and labels": """
        x/p:
          podSelector: {}
          ingress:
          - from:
            - namespaceSelector: {}
              podSelector:
                matchLabels: {tier: web}
                matchExpressions:
                - {key: canary, operator: DoesNotExist}
                - {key: pod, operator: In, values: [a, b, c]}
        """,
    "a policy of a namespace is nothing to others": """
        y/p: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress, Egress]}
        """,
    "nobody has such labels": """
        x/p: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: q}}}]}]}
        """,
    "no pod of the policy": "x/p: {podSelector: {matchLabels: {pod: q}}, policyTypes: [Ingress, Egress]}",
    "the standard label of a namespace that does not have it": """
        x/p:
          podSelector: {}
          ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}}}]}]
        """,
    # -- blocks
    "a block of hosts beyond the cluster": """
        x/p: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}
        """,
    "a block has pods, too": "x/p: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.16/28}}]}]}",
    "a block with exceptions": """
        x/p:
          podSelector: {}
          ingress:
          - from: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.20/30, 10.0.0.31/32, 10.0.0.40/29]}}]
        """,
    "the exception is the block": """
        x/p:
          podSelector: {}
          ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.0/25, 10.0.0.128/25]}}]}]
        """,
    "exceptions within each other": """
        x/p:
          podSelector: {}
          ingress:
          - from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.16/28, 10.0.0.22/32, 10.0.0.0/28]}}]
        """,
    "another block allows what is an exception": """
        x/p:
          podSelector: {}
          ingress:
          - from:
            - ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.16/28]}
            - ipBlock: {cidr: 10.0.0.22/31}
        """,
    "a block within another": """
        x/p:
          podSelector: {}
          ingress: [{from: [{ipBlock: {cidr: 10.0.0.16/28}}, {ipBlock: {cidr: 10.0.0.20/31}}]}]
        """,
    "a selector allows what is an exception": """
        x/p:
          podSelector: {}
          ingress:
          - from:
            - ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.0/24]}
            - podSelector: {matchLabels: {pod: b}}
        """,
    "everything of IPv4, nothing of IPv6": """
        x/p: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}
        """,
    "everything of IPv6 but some": """
        x/p:
          podSelector: {}
          policyTypes: [Egress]
          egress: [{to: [{ipBlock: {cidr: "::/0", except: ["fd00::20/124", "2001:db8::8:0/112"]}}]}]
        """,
    "blocks of both families": """
        x/p:
          podSelector: {}
          ingress:
          - from:
            - ipBlock: {cidr: "2001:db8::/64", except: ["2001:db8::8:0/112"]}
            - ipBlock: {cidr: 192.0.2.128/25}
            ports: [{port: 80}]
        """,
    "a block whose host bits are set": """
        x/p:
          podSelector: {}
          ingress: [{from: [{ipBlock: {cidr: 10.0.0.21/28}}, {ipBlock: {cidr: "fd00::21/124"}}]}]
        """,
    "the ends of all addresses": """
        x/p:
          podSelector: {}
          ingress:
          - from:
            - ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8, 255.255.255.255/32, 0.0.0.0/32]}
            - ipBlock: {cidr: 128.0.0.0/1}
        """,
    # -- ports
    "a port without peer": "x/p: {podSelector: {}, ingress: [{ports: [{port: 80, protocol: TCP}]}]}",
    "a peer without port": """
        x/p: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: a}}}]}]}
        """,
    "a port is of TCP if nothing is said": "x/p: {podSelector: {}, ingress: [{ports: [{port: 81}]}]}",
    "UDP alone": "x/p: {podSelector: {}, ingress: [{ports: [{protocol: UDP}]}]}",
    "the same number of two protocols": """
        x/p:
          podSelector: {}
          policyTypes: [Egress]
          egress: [{ports: [{port: 81}, {port: 81, protocol: UDP}]}]
        """,
    "endPort": """
        x/p:
          podSelector: {}
          ingress: [{ports: [{port: 81, endPort: 90}, {port: 70, endPort: 80, protocol: UDP}]}]
        """,
    "endPort is the port": "x/p: {podSelector: {}, ingress: [{ports: [{port: 80, endPort: 80}]}]}",
    "ranges that overlap": """
        x/p:
          podSelector: {}
          policyTypes: [Egress]
          egress:
          - ports:
            - {port: 70, endPort: 80}
            - {port: 79, endPort: 90}
            - {port: 1, endPort: 65535, protocol: UDP}
        """,
    "a protocol of nobody": "x/p: {podSelector: {}, ingress: [{ports: [{port: 80, protocol: SCTP}]}]}",
    "a named port, other numbers in other pods": "x/p: {podSelector: {}, ingress: [{ports: [{port: web}]}]}",
    "a named port of UDP": "x/p: {podSelector: {}, ingress: [{ports: [{port: web, protocol: UDP}]}]}",
    "a named port, egress": """
        x/p:
          podSelector: {}
          policyTypes: [Egress]
          egress: [{to: [{namespaceSelector: {}}], ports: [{port: web}]}]
        """,
    "a named port, egress to everybody": """
        x/p:
          podSelector: {}
          policyTypes: [Egress]
          egress: [{ports: [{port: web}, {port: dns, protocol: UDP}]}]
        """,
    "a named port, egress to a block": """
        x/p:
          podSelector: {}
          policyTypes: [Egress]
          egress: [{to: [{ipBlock: {cidr: 10.0.0.20/30}}], ports: [{port: web}, {port: 81, protocol: UDP}]}]
        """,
    "a name that no pod has": """
        x/p: {podSelector: {}, ingress: [{ports: [{port: q}]}], egress: [{ports: [{port: q}]}]}
        """,
    "a name that no pod has, and a number": """
        x/p: {podSelector: {}, ingress: [{ports: [{port: q}, {port: 80}]}]}
        """,
    "a named port of a sidecar": """
        x/p:
          podSelector: {}
          policyTypes: [Ingress, Egress]
          ingress: [{ports: [{port: side}]}]
          egress: [{to: [{namespaceSelector: {}}], ports: [{port: side}]}]
        """,
    "DNS and nothing else": """
        x/p:
          podSelector: {}
          policyTypes: [Egress]
          egress:
          - to: [{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: a}}}]
            ports: [{port: 80, protocol: UDP}, {port: 80, protocol: TCP}]
        """,
    # -- what happens
    "a namespace gets other labels": """
        x/p: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}]}]}
        ---
        Namespace y: {metadata: {labels: {ns: y}}}
        ---
        Namespace z: {metadata: {labels: {ns: z, team: red}}}
        """,
    "a pod gets other labels": """
        x/p:
          podSelector: {matchLabels: {tier: web}}
          ingress: [{from: [{podSelector: {matchLabels: {tier: web}}}]}]
        ---
        Pod x/a: {metadata: {labels: {pod: a}}}
        Pod x/c: {metadata: {labels: {pod: c, tier: web}}}
        """,
    "a pod is made anew, with another address": """
        x/p: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}]}
        y/p:
          podSelector: {}
          policyTypes: [Egress]
          egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {pod: a}}}]}]
        ---
        Pod y/a: null
        ---
        Pod y/a:
          metadata: {labels: {pod: a, tier: web}}
          spec: {containers: [{ports: [{name: web, containerPort: 81}]}]}
          status: {phase: Running, podIPs: [{ip: 10.0.0.41}, {ip: "fd00::41"}]}
        """,
    "a pod has ended": """
        x/p: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}]}
        ---
        Pod y/a: {status: {phase: Succeeded}}
        Pod y/b: {status: {phase: Failed}}
        """,
    "another pod has the address of one that has ended": """
        x/p: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: a}}}]}]}
        ---
        Pod x/a: {status: {phase: Succeeded}}
        Pod z/new:
          metadata: {labels: {pod: new}}
          spec: {containers: []}
          status: {phase: Running, podIPs: [{ip: 10.0.0.11}, {ip: "fd00::11"}]}
        """,
    "a pod that has no address yet": """
        x/p: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}
        ---
        Pod x/b: {status: {podIPs: []}}
        """,
    "a pod of the host's network is the node": """
        x/p: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}]}]}
        ---
        Pod x/host:
          metadata: {labels: {pod: host}}
          spec: {hostNetwork: true, containers: []}
          status: {phase: Running, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}
        """,
    "the node is allowed by its block": """
        x/p: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.1/32}}]}]}
        """,
    "policies come and go": """
        x/deny: {podSelector: {}, policyTypes: [Ingress, Egress]}
        ---
        NetworkPolicy x/allow:
          spec: {podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 80}]}]}
        ---
        NetworkPolicy x/deny: null
        ---
        NetworkPolicy x/allow: {spec: {ingress: [{ports: [{port: 81, protocol: UDP}]}]}}
        ---
        NetworkPolicy x/allow: null
        """,
}
