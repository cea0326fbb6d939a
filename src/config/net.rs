//! Addresses and blocks as they stand in files.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::diagnostic::{Report, quoted};
use super::yaml::Node;

impl Report {
    /// A block in CIDR notation; host bits are cleared with a warning, as AWS
    /// clears them.
    pub(super) fn cidr(&mut self, node: &Node, what: &str) -> Option<IpNet> {
        let text = self.text(node, what, "`10.0.0.0/16`")?;
        let Some(net) = parse_net(text) else {
            let help = cidr_help(text);
            self.error(
                node.span,
                format!("{what}: {} is no CIDR block", quoted(text)),
            )
            .help(help);
            return None;
        };
        Some(self.canonical(node, net))
    }

    /// The block without host bits.
    pub(super) fn canonical(&mut self, node: &Node, net: IpNet) -> IpNet {
        let canonical = net.trunc();
        if canonical != net {
            self.warning(
                node.span,
                format!(
                    "`{net}` has bits set past its prefix; it is stored as `{canonical}`, as on AWS"
                ),
            )
            .help(format!("write `{canonical}`"));
        }
        canonical
    }

    /// A single address that a host may have.
    pub(super) fn address(&mut self, node: &Node, what: &str) -> Option<IpAddr> {
        let text = self.text(node, what, "`10.0.1.10`")?;
        let Ok(address) = text.parse::<IpAddr>() else {
            let help = match text.parse::<IpNet>() {
                Ok(net) => format!("write `{}`, without the prefix length", net.addr()),
                Err(_) => "write an IPv4 or IPv6 address, for example `10.0.1.10`".into(),
            };
            self.error(
                node.span,
                format!("{what}: {} is no IP address", quoted(text)),
            )
            .help(help);
            return None;
        };
        if !is_host(address) {
            self.error(
                node.span,
                format!("{what}: `{address}` is no address that a host may have"),
            )
            .help("use a unicast address that is not loopback or link-local");
            return None;
        }
        Some(address)
    }
}

fn has_leading_zero(address: &str) -> bool {
    address
        .split('.')
        .any(|octet| octet.len() > 1 && octet.starts_with('0'))
}

/// Reads a block strictly. `ipnet`'s own reader takes an octet with a leading
/// zero for decimal, where other programs read octal.
pub(super) fn parse_net(text: &str) -> Option<IpNet> {
    let (address, prefix) = text.split_once('/')?;
    let plain = prefix.bytes().all(|b| b.is_ascii_digit())
        && (prefix.len() == 1 || !prefix.starts_with('0'));
    if !plain {
        return None;
    }
    IpNet::new(address.parse().ok()?, prefix.parse().ok()?).ok()
}

/// What to write instead of a text that is no CIDR block.
pub(super) fn cidr_help(text: &str) -> String {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    match (address.trim().parse::<IpAddr>(), prefix) {
        (Ok(IpAddr::V4(ip)), None) => format!("write `{ip}/32` for this one address"),
        (Ok(IpAddr::V6(ip)), None) => format!("write `{ip}/128` for this one address"),
        (Ok(IpAddr::V4(ip)), Some(_)) => {
            format!("write a prefix length from 0 to 32, for example `{ip}/32`")
        }
        (Ok(IpAddr::V6(ip)), Some(_)) => {
            format!("write a prefix length from 0 to 128, for example `{ip}/128`")
        }
        (Err(_), _)
            if matches!(
                text.to_lowercase().as_str(),
                "any" | "all" | "anywhere" | "*"
            ) =>
        {
            "write `0.0.0.0/0` for every IPv4 address, `::/0` for every IPv6 address".into()
        }
        (Err(_), Some(_)) if has_leading_zero(address) => {
            "write the address without leading zeros: some programs read them as octal".into()
        }
        (Err(_), _) => "write a block such as `10.0.0.0/16` or `2001:db8::/56`".into(),
    }
}

/// Blocks to which nothing is forwarded, whatever a route says: link-local
/// (RFC 3927, RFC 4291 §2.5.6), loopback, multicast.
pub(super) const NEVER_FORWARDED: [&str; 6] = [
    "169.254.0.0/16",
    "fe80::/10",
    "127.0.0.0/8",
    "::1/128",
    "224.0.0.0/4",
    "ff00::/8",
];

/// Whether the block is one of those of AWS's own services, or within one:
/// AWS refuses a route there (aws-semantics §4).
pub(super) fn is_service_block(net: &IpNet) -> bool {
    ["169.254.168.0/22", "fd00:ec2::/32"]
        .iter()
        .filter_map(|block| parse_net(block))
        .any(|block| block.contains(net))
}

/// Whether two blocks share an address.
pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Whether a VPC may hold this block: none of it is loopback, link-local,
/// multicast, reserved or "this network" (RFC 6890), or where AWS's own services
/// are (aws-semantics §7).
pub(super) fn may_be_vpc(net: &IpNet) -> bool {
    let forbidden = [
        v4([0, 0, 0, 0], 8),
        v4([127, 0, 0, 0], 8),
        v4([169, 254, 0, 0], 16),
        v4([224, 0, 0, 0], 3),
        v6(0x0000, 8),
        v6(0xfe80, 10),
        v6(0xff00, 8),
    ];
    !is_service_block(net) && !forbidden.iter().flatten().any(|block| overlap(block, net))
}

/// The first four addresses and the last, which AWS reserves in every subnet
/// (VPC User Guide, "Subnet CIDR blocks").
pub(super) fn is_reserved(net: &IpNet, address: IpAddr) -> bool {
    match (net, address) {
        (IpNet::V4(net), IpAddr::V4(ip)) => {
            ip == net.broadcast() || u32::from(ip) - u32::from(net.network()) < 4
        }
        (IpNet::V6(net), IpAddr::V6(ip)) => {
            ip == net.broadcast() || u128::from(ip) - u128::from(net.network()) < 4
        }
        _ => false,
    }
}

/// The `n`-th address of the block that AWS does not reserve.
pub(super) fn nth_free(net: &IpNet, n: u32) -> Option<IpAddr> {
    let address = match net {
        IpNet::V4(net) => {
            let first = u32::from(net.network()).checked_add(4)?;
            IpAddr::V4(Ipv4Addr::from(first.checked_add(n)?))
        }
        IpNet::V6(net) => {
            let first = u128::from(net.network()).checked_add(4)?;
            IpAddr::V6(Ipv6Addr::from(first.checked_add(u128::from(n))?))
        }
    };
    (net.contains(&address) && !is_reserved(net, address)).then_some(address)
}

fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => may_be_vpc(&IpNet::V4(Ipv4Net::from(ip))),
        IpAddr::V6(ip) => may_be_vpc(&IpNet::V6(Ipv6Net::from(ip))),
    }
}

fn v4(octets: [u8; 4], prefix: u8) -> Option<IpNet> {
    Ipv4Net::new(octets.into(), prefix).ok().map(IpNet::V4)
}

fn v6(first: u16, prefix: u8) -> Option<IpNet> {
    Ipv6Net::new(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), prefix)
        .ok()
        .map(IpNet::V6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_five_reserved_addresses_are_never_given() {
        let net: IpNet = "10.0.0.0/28".parse().unwrap();
        let given: Vec<IpAddr> = (0..20).map_while(|n| nth_free(&net, n)).collect();
        assert_eq!(given.len(), 11);
        assert_eq!(given[0], "10.0.0.4".parse::<IpAddr>().unwrap());
        assert_eq!(given[10], "10.0.0.14".parse::<IpAddr>().unwrap());
        let net: IpNet = "2001:db8::/64".parse().unwrap();
        assert_eq!(nth_free(&net, 0), "2001:db8::4".parse().ok());
        assert!(is_reserved(
            &net,
            "2001:db8::ffff:ffff:ffff:ffff".parse().unwrap()
        ));
    }

    #[test]
    fn blocks_that_no_vpc_may_hold_are_known() {
        for text in [
            "127.0.0.0/16",
            "224.0.0.0/16",
            "169.254.0.0/16",
            "fe80::/64",
            "ff02::/64",
        ] {
            assert!(!may_be_vpc(&text.parse().unwrap()), "{text}");
        }
        for text in [
            "10.0.0.0/16",
            "100.64.0.0/16",
            "2001:db8::/56",
            "fd00:1::/48",
        ] {
            assert!(may_be_vpc(&text.parse().unwrap()), "{text}");
        }
    }
}
