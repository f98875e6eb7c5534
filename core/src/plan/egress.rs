//! The egress guard: which traffic of a cluster may leave its pod, as rules for the pod's own network namespace.
//!
//! Everything nested is root somewhere and leaves with the pod's address, so what the host would let the pod do, it would let a nested pod do.
//! The guard stands where nested traffic is forwarded, works whatever the host's CNI does, and cannot be changed from a node container: that has
//! a network namespace of its own. It stops traffic, not escapes: who breaks out of a privileged node container into the pod's process is root
//! there and may take the guard down. What the pod itself sends (the agent's answers, Docker's pulls) is not forwarded and not touched; that is
//! the NetworkPolicy's part.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// The guard's chain. A chain of its own: Docker, kube-proxy and users never write to it.
pub const CHAIN: &str = "NESTLING-EGRESS";

/// The table. `mangle` is passed before `filter` is, in which Docker puts its own rules first again each time it makes a network.
pub const TABLE: &str = "mangle";

/// Link-local addresses: cloud metadata services listen here. Not routable, so nothing that a cluster needs is behind them but nameservers.
pub const LINK_LOCAL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);

/// What is let through, in this order; what nothing of it names and `denied` does not hold is the rest of the world.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Guard {
    /// The cluster's own ranges: from node to node, and inwards to published ports.
    pub own: Vec<Ipv4Net>,
    /// The pod's nameservers, of which only port 53 is let through. Docker up to version 27 asks them from a node's network namespace.
    pub nameservers: Vec<Ipv4Addr>,
    /// Exceptions of the operator's owner.
    pub allowed: Vec<Ipv4Net>,
    /// The host's ranges. [`LINK_LOCAL`] is always denied.
    pub denied: Vec<Ipv4Net>,
}

impl Guard {
    /// The rules, exactly as `iptables-save` prints them.
    pub fn rules(&self) -> Vec<String> {
        let rule = |matches: &str, target: &str| format!("-A {CHAIN} {matches}-j {target}");
        // RELATED is also what a connection helper expects; of that only errors are wanted (path MTU).
        let mut rules = vec![rule("-m conntrack --ctstate ESTABLISHED ", "RETURN"), rule("-p icmp -m conntrack --ctstate RELATED ", "RETURN")];
        rules.extend(self.own.iter().map(|net| rule(&destination(*net), "RETURN")));
        for nameserver in &self.nameservers {
            rules.extend(["udp", "tcp"].map(|protocol| rule(&format!("-d {nameserver}/32 -p {protocol} -m {protocol} --dport 53 "), "RETURN")));
        }
        rules.extend(self.allowed.iter().map(|net| rule(&destination(*net), "RETURN")));
        let denied = self.denied.iter().map(Ipv4Net::trunc).chain([LINK_LOCAL]).collect::<Vec<_>>();
        rules.extend(Ipv4Net::aggregate(&denied).into_iter().map(|net| rule(&destination(net), "DROP")));
        rules
    }

    /// Input of `iptables-restore --noflush` that puts the guard up, as one transaction, whatever is there of an earlier one. `saved` is what
    /// `iptables-save` prints.
    pub fn load(&self, saved: &str) -> String {
        let mut lines = vec![format!("*{TABLE}"), format!(":{CHAIN} - [0:0]")];
        lines.extend(saved.lines().filter(|line| is_jump(line)).map(|_| format!("-D FORWARD -j {CHAIN}")));
        lines.push(format!("-I FORWARD 1 -j {CHAIN}"));
        lines.extend(self.rules());
        lines.push("COMMIT\n".to_owned());
        lines.join("\n")
    }

    /// Whether the guard stands in what `iptables-save` prints: all forwarded traffic passes it first, and its rules are these.
    ///
    /// # Errors
    /// What is different.
    pub fn standing(&self, saved: &str) -> Result<(), String> {
        let first = saved.lines().find(|line| line.starts_with("-A FORWARD "));
        if !first.is_some_and(is_jump) {
            return Err(format!("forwarded traffic passes {} before the guard", first.unwrap_or("nothing")));
        }
        let prefix = format!("-A {CHAIN} ");
        let found: Vec<&str> = saved.lines().map(str::trim_end).filter(|line| line.starts_with(&prefix)).collect();
        let wanted = self.rules();
        if found.len() != wanted.len() {
            return Err(format!("the guard has {} rules instead of {}", found.len(), wanted.len()));
        }
        match found.iter().zip(&wanted).find(|(found, wanted)| found != wanted) {
            Some((found, wanted)) => Err(format!("the guard has {found:?} where {wanted:?} belongs")),
            None => Ok(()),
        }
    }
}

fn is_jump(line: &str) -> bool {
    line.trim_end().strip_prefix("-A FORWARD -j ").is_some_and(|target| target == CHAIN)
}

/// `iptables-save` leaves a range out that holds every address.
fn destination(net: Ipv4Net) -> String {
    if net.prefix_len() == 0 { String::new() } else { format!("-d {} ", net.trunc()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn guard() -> Guard {
        Guard {
            own: vec![net("172.31.255.0/24"), net("172.31.254.0/24")],
            nameservers: vec!["10.96.0.10".parse().unwrap(), "169.254.20.10".parse().unwrap()],
            allowed: vec![net("10.96.7.7/32")],
            denied: vec![net("10.244.0.0/16"), net("10.96.0.0/16"), net("172.18.0.2/32"), net("10.244.3.0/24")],
        }
    }

    /// A new connection of a nested process.
    #[derive(Clone, Copy, Debug)]
    struct Packet<'a> {
        to: Ipv4Addr,
        protocol: &'a str,
        port: u16,
    }

    /// What netfilter does with the rules, for packets of no known connection.
    fn passes(rules: &[String], packet: Packet<'_>) -> bool {
        for rule in rules {
            let words: Vec<&str> = rule.split(' ').collect();
            let value = |flag: &str| words.iter().position(|word| *word == flag).map(|at| words[at + 1]);
            let hit = value("--ctstate").is_none()
                && value("-d").is_none_or(|range| net(range).contains(&packet.to))
                && value("-p").is_none_or(|protocol| protocol == packet.protocol)
                && value("--dport").is_none_or(|port| port == packet.port.to_string());
            if hit {
                return value("-j") == Some("RETURN");
            }
        }
        true
    }

    #[test]
    fn the_rules() {
        insta::assert_snapshot!(guard().load(""));
    }

    #[rstest]
    // The host's API server by its Service, and by its node.
    #[case("10.96.0.1", "tcp", 443, false)]
    #[case("172.18.0.2", "tcp", 6443, false)]
    // Another cluster by its pod; a host's pod.
    #[case("10.244.1.9", "tcp", 6443, false)]
    // The pod's nameservers, for names only.
    #[case("10.96.0.10", "udp", 53, true)]
    #[case("10.96.0.10", "tcp", 53, true)]
    #[case("10.96.0.10", "tcp", 9153, false)]
    #[case("169.254.20.10", "udp", 53, true)]
    #[case("169.254.20.10", "tcp", 80, false)]
    #[case("10.96.0.11", "udp", 53, false)]
    // Metadata, also on the port of names.
    #[case("169.254.169.254", "tcp", 80, false)]
    #[case("169.254.169.254", "udp", 53, false)]
    // The exception, node to node, and the world.
    #[case("10.96.7.7", "tcp", 5000, true)]
    #[case("172.31.255.3", "tcp", 10250, true)]
    #[case("203.0.113.7", "tcp", 443, true)]
    #[case("172.18.0.3", "tcp", 443, true)]
    fn connections_are_judged(#[case] to: &str, #[case] protocol: &str, #[case] port: u16, #[case] expected: bool) {
        assert_eq!(passes(&guard().rules(), Packet { to: to.parse().unwrap(), protocol, port }), expected);
    }

    /// What `iptables-save` prints when the guard stands between rules of others.
    fn saved(guard: &Guard) -> String {
        format!(
            "*mangle\n:PREROUTING ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:{CHAIN} - [0:0]\n-A FORWARD -j {CHAIN}\n-A FORWARD -j OTHER\n{}\nCOMMIT\n",
            guard.rules().join("\n")
        )
    }

    #[test]
    fn what_stands_is_compared_rule_by_rule() {
        let (guard, good) = (guard(), saved(&guard()));
        assert_eq!(guard.standing(&good), Ok(()));
        let jump = format!("-A FORWARD -j {CHAIN}\n");
        for bad in [
            String::new(),
            good.replace(&jump, ""),
            good.replace(&jump, &format!("-A FORWARD -i br-1 -j ACCEPT\n{jump}")),
            good.replace(&jump, &format!("-A FORWARD -d 10.0.0.0/8 -j {CHAIN}\n")),
            good.replace("-d 169.254.0.0/16 -j DROP", "-d 169.254.0.0/16 -j RETURN"),
            good.replace(&format!("-A {CHAIN} -d 172.18.0.2/32 -j DROP\n"), ""),
        ] {
            assert!(guard.standing(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_earlier_guard_is_replaced() {
        let text = guard().load(&saved(&Guard::default()));
        assert_eq!(text.matches("-D FORWARD").count(), 1);
        assert!(text.find("-D FORWARD") < text.find("-I FORWARD 1"), "{text}");
    }

    #[test]
    fn everything_may_be_denied_or_allowed() {
        let everything = Guard { denied: vec![net("0.0.0.0/0")], ..guard() };
        assert!(!passes(&everything.rules(), Packet { to: "203.0.113.7".parse().unwrap(), protocol: "tcp", port: 443 }));
        assert!(passes(&everything.rules(), Packet { to: "10.96.7.7".parse().unwrap(), protocol: "tcp", port: 443 }));
        let open = Guard { allowed: vec![net("0.0.0.0/0")], ..guard() };
        assert!(passes(&open.rules(), Packet { to: "10.96.0.1".parse().unwrap(), protocol: "tcp", port: 443 }));
    }

    fn ranges() -> impl Strategy<Value = Vec<Ipv4Net>> {
        prop::collection::vec((any::<u32>(), 4_u8..=32).prop_map(|(address, length)| Ipv4Net::new(address.into(), length).unwrap()), 0..5)
    }

    proptest! {
        #[test]
        fn the_rules_are_what_the_fields_say(
            own in ranges(), allowed in ranges(), denied in ranges(), nameservers in prop::collection::vec(any::<u32>(), 0..3),
            anywhere: u32, near in any::<prop::sample::Index>(), port in prop_oneof![Just(53_u16), any::<u16>()], udp: bool,
        ) {
            let nameservers: Vec<Ipv4Addr> = nameservers.into_iter().map(Ipv4Addr::from).collect();
            // Any address, or one of those that a field names.
            let mut candidates = vec![Ipv4Addr::from(anywhere)];
            candidates.extend(&nameservers);
            candidates.extend(own.iter().chain(&allowed).chain(&denied).map(Ipv4Net::broadcast));
            let to = candidates[near.index(candidates.len())];
            let within = |nets: &[Ipv4Net]| nets.iter().any(|net| net.contains(&to));
            let expected = within(&own)
                || (port == 53 && nameservers.contains(&to))
                || within(&allowed)
                || !(within(&denied) || LINK_LOCAL.contains(&to));
            let guard = Guard { own, nameservers, allowed, denied };
            prop_assert_eq!(passes(&guard.rules(), Packet { to, protocol: if udp { "udp" } else { "tcp" }, port }), expected);
        }
    }
}
