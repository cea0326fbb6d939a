//! Gives every interface its addresses, and sees to it that no two share one.

use std::collections::HashMap;
use std::net::IpAddr;

use super::diagnostic::Report;
use super::entities::InterfaceDecl;
use super::net::{is_reserved, nth_free};
use super::source::Span;
use super::vpc::{SubnetDecl, VpcDecl};
use crate::model::{Address, SubnetIx};

/// Checks what is written, then gives what is left out.
pub(super) fn assign(
    report: &mut Report,
    interfaces: &mut [InterfaceDecl],
    subnets: &[SubnetDecl],
    vpc: &VpcDecl,
) {
    let taken = check_written(report, interfaces, subnets, vpc);
    let mut giver = Giver {
        taken,
        next: HashMap::new(),
    };
    for decl in interfaces.iter_mut() {
        let private: Vec<IpAddr> = match (&decl.addresses, decl.subnet) {
            (Some(written), _) => written.iter().map(|(address, _)| *address).collect(),
            (None, Some(subnet)) => giver.give(report, decl, subnet, &subnets[subnet.ix()]),
            (None, None) => Vec::new(),
        };
        decl.interface.addresses = pair(report, decl, &private);
    }
}

/// Every written address, private or public, with the place of it.
fn check_written(
    report: &mut Report,
    interfaces: &[InterfaceDecl],
    subnets: &[SubnetDecl],
    vpc: &VpcDecl,
) -> HashMap<IpAddr, Span> {
    let mut taken: HashMap<IpAddr, Span> = HashMap::new();
    for decl in interfaces {
        for (address, span) in decl.addresses.iter().flatten() {
            if decl.interface.is_external() {
                check_outside(report, *address, *span, &decl.label, vpc);
            } else if let Some(ix) = decl.subnet {
                check_inside(report, *address, *span, &subnets[ix.ix()]);
            }
            take(report, &mut taken, *address, *span);
        }
        for (address, span) in &decl.public {
            let address = IpAddr::V4(*address);
            check_outside(report, address, *span, &decl.label, vpc);
            take(report, &mut taken, address, *span);
        }
    }
    taken
}

fn take(report: &mut Report, taken: &mut HashMap<IpAddr, Span>, address: IpAddr, span: Span) {
    if let Some(first) = taken.get(&address) {
        report
            .error(span, format!("the address `{address}` is used twice"))
            .also(*first, "first used here")
            .help("give each interface an address of its own");
        return;
    }
    taken.insert(address, span);
}

fn check_outside(report: &mut Report, address: IpAddr, span: Span, label: &str, vpc: &VpcDecl) {
    if let Some(block) = vpc.vpc.cidrs.iter().find(|block| block.contains(&address)) {
        report
            .error(
                span,
                format!(
                    "`{address}` of `{label}` must lie outside the VPC, but `{block}` holds it"
                ),
            )
            .help(
                "external and public addresses are not the VPC's own; for example `203.0.113.10`",
            );
    }
}

fn check_inside(report: &mut Report, address: IpAddr, span: Span, decl: &SubnetDecl) {
    if !decl.whole {
        return;
    }
    let subnet = &decl.subnet;
    match subnet.cidr_of(address) {
        None => {
            let blocks: Vec<String> = subnet.cidrs.iter().map(ToString::to_string).collect();
            report
                .error(
                    span,
                    format!("`{address}` is not in subnet `{}`", subnet.name),
                )
                .help(format!(
                    "choose an address in {}, or another subnet",
                    blocks.join(" or ")
                ));
        }
        Some(block) if is_reserved(&block, address) => {
            let help = match nth_free(&block, 0) {
                Some(first) => format!("the first that an interface may have is `{first}`"),
                None => "choose another address".into(),
            };
            report
                .error(span, format!("`{address}` is reserved: AWS keeps the first four addresses and the last of `{block}`"))
                .help(help);
        }
        Some(_) => {}
    }
}

/// Hands out the addresses that nobody wrote, lowest first.
struct Giver {
    taken: HashMap<IpAddr, Span>,
    /// Where the search in each block goes on: all before is taken.
    next: HashMap<(SubnetIx, usize), u32>,
}

impl Giver {
    fn give(
        &mut self,
        report: &mut Report,
        decl: &InterfaceDecl,
        ix: SubnetIx,
        subnet: &SubnetDecl,
    ) -> Vec<IpAddr> {
        let mut given = Vec::new();
        for (i, block) in subnet.subnet.cidrs.iter().enumerate() {
            let next = self.next.entry((ix, i)).or_insert(0);
            let free = loop {
                let candidate = nth_free(block, *next);
                *next = next.saturating_add(1);
                match candidate {
                    Some(address) if self.taken.contains_key(&address) => {}
                    found => break found,
                }
            };
            match free {
                Some(address) => {
                    self.taken.insert(address, decl.span);
                    given.push(address);
                }
                None => {
                    report
                        .error(
                            decl.span,
                            format!(
                                "no address is left in `{block}` of subnet `{}` for `{}`",
                                subnet.subnet.name, decl.label
                            ),
                        )
                        .help("enlarge the subnet, or move some entities to another");
                }
            }
        }
        given
    }
}

/// Joins private addresses with the public ones, IPv4 with IPv4 by position.
fn pair(report: &mut Report, decl: &InterfaceDecl, private: &[IpAddr]) -> Vec<Address> {
    let mut public = decl.public.iter();
    let addresses = private
        .iter()
        .map(|&private| Address {
            private,
            public: match private {
                IpAddr::V4(_) => public.next().map(|(address, _)| *address),
                IpAddr::V6(_) => None,
            },
        })
        .collect();
    let known = decl.addresses.is_some() || decl.subnet.is_some();
    if known && let Some((address, span)) = public.next() {
        let count = private.iter().filter(|address| address.is_ipv4()).count();
        report
            .error(
                *span,
                format!("`{address}` has no private address to stand for: `{}` has {count} IPv4 addresses and {} public ones", decl.label, decl.public.len()),
            )
            .help("public and private IPv4 addresses are paired by position; add one to `addresses` or remove this one");
    }
    addresses
}
