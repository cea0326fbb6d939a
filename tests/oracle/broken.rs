//! Engines that are wrong on purpose, each in one way that has been got wrong
//! before by somebody, or may well be. A property that lets one of them pass
//! proves nothing.
//!
//! Each is the oracle in disguise (`disguises.rs`): fed a bent model
//! (`bends.rs`), a bent packet or a bent clock, or with its judgement bent
//! afterwards.

use std::sync::atomic::{AtomicU64, Ordering};

use sgwall::model::Traffic;
use sgwall::policy::DropReason;
use sgwall::policy::oracle::{Judgement, Outcome, Packet, Payload, TcpFlags};

use crate::bends;
use crate::disguises::{
    Deaf, Eager, Forgetful, Forgiving, OneTable, Overlapping, Stingy, Strays, Timeless, after,
    bent, disguised, shadowed, with_tcp,
};
use crate::harness::Maker;

/// Source of contents that are all different.
static DRAWN: AtomicU64 = AtomicU64::new(0);

/// Every broken engine with the name of what is wrong with it.
pub fn all() -> Vec<(&'static str, Maker)> {
    vec![
        // Rules and groups.
        ("port ranges end one early", |m, n| {
            bent(m, n, bends::ports_end_early)
        }),
        ("port ranges begin one early", |m, n| {
            bent(m, n, bends::ports_begin_early)
        }),
        ("ingress rules are ignored", |m, n| {
            bent(m, n, bends::ingress_open)
        }),
        ("only the first group counts", |m, n| {
            bent(m, n, bends::first_group_only)
        }),
        ("groups in the wrong order", |m, n| {
            bent(m, n, bends::groups_reversed)
        }),
        ("groups cover public addresses", |m, n| {
            bent(m, n, bends::groups_cover_public)
        }),
        ("groups never cover their own members", |m, n| {
            bent(m, n, bends::no_self_reference)
        }),
        ("secondary addresses are forgotten", |m, n| {
            bent(m, n, bends::primary_only)
        }),
        ("group membership passes through appliances", |m, n| {
            bent(m, n, bends::membership_by_address)
        }),
        ("only the first prefix list entry counts", |m, n| {
            bent(m, n, bends::first_entry_only)
        }),
        ("/31 blocks match as /32", |m, n| {
            bent(m, n, bends::pairs_as_hosts)
        }),
        ("ICMP codes are ignored", |m, n| {
            bent(m, n, bends::codes_ignored)
        }),
        // Network ACLs.
        ("network ACLs from the highest number down", |m, n| {
            bent(m, n, bends::acls_reversed)
        }),
        ("network ACLs allow what no entry covers", |m, n| {
            bent(m, n, bends::acls_allow_rest)
        }),
        ("network ACLs deny only", |m, n| {
            bent(m, n, bends::acls_deny_all)
        }),
        ("network ACLs and routes inside a subnet", |m, n| {
            bent(m, n, bends::routers_inside_subnets)
        }),
        ("network ACLs let known flows pass", |m, n| {
            Forgiving::make(m, n)
        }),
        ("every subnet has the VPC's own network ACL", |m, n| {
            bent(m, n, bends::default_acl_only)
        }),
        // Routes, checks and sizes.
        ("the first route that covers is taken", |m, n| {
            bent(m, n, bends::first_route_wins)
        }),
        ("blackholes are no routes", |m, n| {
            bent(m, n, bends::no_blackholes)
        }),
        ("local routes can't be replaced", |m, n| {
            bent(m, n, bends::local_stays)
        }),
        ("every subnet has the main route table", |m, n| {
            bent(m, n, bends::main_table_only)
        }),
        ("the source check is never off", |m, n| {
            bent(m, n, bends::check_always_on)
        }),
        ("the destination check is never made", |m, n| {
            after(m, n, no_destination_check)
        }),
        ("no address translation", |m, n| after(m, n, untranslated)),
        ("MTU off by one", |m, n| bent(m, n, bends::mtu_one_more)),
        ("DF is ignored", |m, n| {
            disguised(m, n, |packet| packet.dont_fragment = false)
        }),
        ("what is too long is dropped, DF or no DF", |m, n| {
            disguised(m, n, |packet| packet.dont_fragment = true)
        }),
        ("the router does not answer", |m, n| {
            after(m, n, |_, outcome| outcome.answer = None)
        }),
        ("the router's answers pass every guard", |m, n| {
            after(m, n, |_, outcome| {
                outcome.answer.iter_mut().for_each(|a| a.refused = None);
            })
        }),
        ("damaged headers are read", |m, n| {
            disguised(m, n, |packet| packet.damaged = false)
        }),
        // Services.
        ("services are dropped by rules", |m, n| {
            after(m, n, services_filtered)
        }),
        ("DHCP is like other UDP", |m, n| {
            disguised(m, n, without_dhcp)
        }),
        // Tracked and untracked.
        ("every flow is tracked", |m, n| {
            bent(m, n, bends::balancers_only)
        }),
        ("network load balancers are like others", |m, n| {
            bent(m, n, bends::no_network_balancers)
        }),
        ("a revoked rule cuts nothing", |m, n| {
            shadowed(m, n, bends::balancers_only, |_, seen, shadow| {
                let refused = [DropReason::NoEgressRule, DropReason::NoIngressRule];
                let cut = matches!(seen.judgement,
                    Judgement::Dropped { reason, .. } if refused.contains(&reason));
                cut && matches!(shadow.judgement, Judgement::Delivered { .. })
            })
        }),
        ("one port back is enough to be untracked", |m, n| {
            Eager::make(m, n, |_, _| true)
        }),
        ("one family is enough to be untracked", |m, n| {
            Eager::make(m, n, |rule, traffic| {
                rule == Traffic::All || rule == traffic
            })
        }),
        ("errors about untracked flows are related", |m, n| {
            shadowed(m, n, bends::balancers_only, |packet, _, _| {
                matches!(packet.payload, Payload::Icmp { .. })
            })
        }),
        ("ICMP errors are always related", |m, n| {
            bent(m, n, bends::always_related)
        }),
        ("ICMP errors are never related", |m, n| {
            bent(m, n, bends::never_related)
        }),
        ("one flow table for everybody", |m, n| OneTable::make(m, n)),
        ("a rule change forgets flows", |m, n| Forgetful::make(m, n)),
        ("a rule change is ignored", |m, n| Deaf::make(m, n)),
        // The life of a flow.
        ("flows never expire", |m, n| Timeless::make(m, n)),
        ("established connections last 1 ms too long", |m, n| {
            bent(m, n, bends::established_longer)
        }),
        ("UDP streams last 1 ms too long", |m, n| {
            bent(m, n, bends::stream_longer)
        }),
        ("every packet is mid-stream TCP", |m, n| {
            disguised(m, n, |packet| {
                with_tcp(packet, |flags| *flags = TcpFlags::default())
            })
        }),
        ("a reset does not close", |m, n| {
            disguised(m, n, |packet| with_tcp(packet, |flags| flags.rst = false))
        }),
        ("FIN does not close", |m, n| {
            disguised(m, n, |packet| with_tcp(packet, |flags| flags.fin = false))
        }),
        ("a FIN is a reset", |m, n| {
            disguised(m, n, |packet| {
                with_tcp(packet, |flags| flags.rst |= flags.fin)
            })
        }),
        ("any acknowledgement acknowledges the FIN", |m, n| {
            disguised(m, n, without_numbers)
        }),
        ("no reset closes at once", |m, n| {
            disguised(m, n, |packet| {
                if let Payload::Tcp { flags, .. } = packet.payload
                    && flags.rst
                {
                    without_numbers(packet);
                }
            })
        }),
        (
            "a reset counts for nothing but its acknowledgement",
            |m, n| {
                disguised(m, n, |packet| {
                    with_tcp(packet, |flags| flags.rst &= flags.ack);
                })
            },
        ),
        ("an acknowledgement may fall short by one", |m, n| {
            disguised(m, n, acknowledging_more)
        }),
        ("a closed connection lets strays pass", |m, n| {
            Strays::make(m, n)
        }),
        ("no SYN opens a connection anew", |m, n| {
            disguised(m, n, |packet| {
                with_tcp(packet, |flags| flags.ack |= flags.syn)
            })
        }),
        ("question identifiers are ignored", |m, n| {
            disguised(m, n, without_query_id)
        }),
        ("all ICMP questions are pings", |m, n| {
            disguised(m, n, without_query_kind)
        }),
        // Allowance.
        ("the allowance is one more", |m, n| {
            bent(m, n, bends::allowance_one_more)
        }),
        ("each interface has an allowance of its own", |m, n| {
            bent(m, n, bends::entity_per_interface)
        }),
        ("untracked flows count against the allowance", |m, n| {
            Stingy::make(m, n)
        }),
        ("the table has room for one more", |m, n| {
            bent(m, n.saturating_add(1), |_| {})
        }),
        // Fragments.
        ("each fragment is judged by itself", |m, n| {
            disguised(m, n, each_fragment_whole)
        }),
        ("fragments of all protocols mix", |m, n| {
            disguised(m, n, |packet| {
                packet.fragment.iter_mut().for_each(|f| f.protocol = 0);
            })
        }),
        ("fragments of all datagrams mix", |m, n| {
            disguised(m, n, |packet| {
                packet.fragment.iter_mut().for_each(|f| f.id = 0);
            })
        }),
        ("overlapping fragments are accepted", |m, n| {
            Overlapping::make(m, n)
        }),
        ("duplicates of fragments overlap", |m, n| {
            disguised(m, n, |packet| {
                if let Some(fragment) = &mut packet.fragment {
                    // A new number each time.
                    fragment.content = DRAWN.fetch_add(1, Ordering::Relaxed);
                }
            })
        }),
        ("no first fragment begins a new datagram", |m, n| {
            disguised(m, n, |packet| {
                packet.fragment.iter_mut().for_each(|f| f.content = 0);
            })
        }),
        ("fragments that waited are forgotten", |m, n| {
            after(m, n, |_, outcome| outcome.released.clear())
        }),
        ("fragments that waited come in reverse", |m, n| {
            after(m, n, |_, outcome| outcome.released.reverse())
        }),
        ("fragments die uncounted", |m, n| {
            after(m, n, |_, outcome| outcome.lost = 0)
        }),
        ("orphans die uncounted", |m, n| {
            after(m, n, |_, outcome| outcome.orphans.clear())
        }),
    ]
}

fn no_destination_check(packet: &Packet, outcome: &mut Outcome) {
    if let Judgement::Dropped {
        reason: DropReason::DestinationCheck,
        at,
    } = outcome.judgement
    {
        outcome.judgement = Judgement::Delivered {
            to: at,
            packet: *packet,
            split: None,
            egress: None,
            ingress: None,
        };
    }
}

fn untranslated(sent: &Packet, outcome: &mut Outcome) {
    if let Judgement::Delivered { packet, .. } = &mut outcome.judgement {
        *packet = *sent;
    }
}

fn services_filtered(_: &Packet, outcome: &mut Outcome) {
    if let Judgement::Dropped { reason, .. } = &mut outcome.judgement
        && *reason == DropReason::NoService
    {
        *reason = DropReason::NoEgressRule;
    }
}

fn without_dhcp(packet: &mut Packet) {
    if let Payload::Udp { source_port, .. } = &mut packet.payload {
        *source_port = source_port.saturating_add(1);
    }
}

fn without_numbers(packet: &mut Packet) {
    if let Payload::Tcp {
        sequence,
        acknowledgement,
        data,
        ..
    } = &mut packet.payload
    {
        (*sequence, *acknowledgement, *data) = (0, 1, 0);
    }
}

fn acknowledging_more(packet: &mut Packet) {
    if let Payload::Tcp {
        acknowledgement, ..
    } = &mut packet.payload
    {
        *acknowledgement = acknowledgement.wrapping_add(1);
    }
}

fn without_query_id(packet: &mut Packet) {
    if let Payload::IcmpQuery { id, .. } = &mut packet.payload {
        *id = 0;
    }
}

fn without_query_kind(packet: &mut Packet) {
    if let Payload::IcmpQuery { kind, .. } = &mut packet.payload {
        *kind = match *kind {
            13 | 15 | 17 => 8,
            14 | 16 | 18 => 0,
            other => other,
        };
    }
}

fn each_fragment_whole(packet: &mut Packet) {
    if let Payload::Headless(protocol) = packet.payload {
        packet.payload = Payload::Other(protocol);
    }
    packet.fragment = None;
}
