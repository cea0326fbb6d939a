//! What an entity stands in for: `kind:`, with the `type:` of a load balancer
//! and the `via:` of a host outside the VPC.

use super::diagnostic::{Report, quoted};
use super::reader::{Entry, Fields, list_of};
use super::suggest::nearest;
use crate::model::{EntityKind, LoadBalancer, Via};

const KINDS: [&str; 5] = ["ec2", "rds", "elb", "ecs", "external"];
/// The types of load balancer (ELBv2 `Type`; gateway load balancers have no
/// security groups).
const BALANCERS: [&str; 2] = ["application", "network"];
/// Reads `kind:` and what belongs to it: `type` and `via`.
pub(super) fn read(
    report: &mut Report,
    entry: &Entry<'_>,
    fields: &Fields<'_>,
    what: &str,
) -> Option<EntityKind> {
    let Some(node) = fields.get("kind") else {
        report
            .error(entry.key, format!("{what} has no `kind`"))
            .help(format!("write `kind:` and one of {}", list_of(&KINDS)));
        return None;
    };
    let text = report.text(node, "`kind`", "`kind: ec2`")?;
    let kind = match text {
        "ec2" => EntityKind::Ec2,
        "rds" => EntityKind::Rds,
        "elb" => EntityKind::Elb(read_balancer(report, fields)),
        "ecs" => EntityKind::Ecs,
        "external" => return read_via(report, entry, fields, what).map(EntityKind::External),
        _ => {
            let help = match nearest(text, KINDS) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the kinds are {}", list_of(&KINDS)),
            };
            report
                .error(
                    node.span,
                    format!("there is no kind {} of entity", quoted(text)),
                )
                .help(help);
            return None;
        }
    };
    if let Some(entry) = fields.entry("type")
        && text != "elb"
    {
        report
            .error(
                entry.key,
                format!("{what} is of kind `{text}`; only `elb` has a `type`"),
            )
            .help("remove `type`, or write `kind: elb`");
    }
    if let Some(via) = fields.entry("via") {
        report
            .error(
                via.key,
                format!("{what} is in the VPC, so it takes no `via`"),
            )
            .help("remove `via`, or write `kind: external`");
    }
    Some(kind)
}

fn read_balancer(report: &mut Report, fields: &Fields<'_>) -> LoadBalancer {
    let Some(node) = fields.get("type") else {
        return LoadBalancer::default();
    };
    let text = report.text(node, "`type`", "`type: network`");
    let help = match text {
        None => return LoadBalancer::default(),
        Some("application") => return LoadBalancer::Application,
        Some("network") => return LoadBalancer::Network,
        Some("gateway") => {
            "a gateway load balancer has no security groups; stand it in with `kind: ec2`"
                .to_owned()
        }
        Some(text) => match nearest(text, BALANCERS) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the types are {}", list_of(&BALANCERS)),
        },
    };
    report
        .error(
            node.span,
            format!(
                "there is no type {} of load balancer here",
                quoted(text.unwrap_or_default())
            ),
        )
        .help(help);
    LoadBalancer::default()
}

fn read_via(
    report: &mut Report,
    entry: &Entry<'_>,
    fields: &Fields<'_>,
    what: &str,
) -> Option<Via> {
    let help = "write `via: igw` for a host on the internet, `via: vgw` for one behind a VPN";
    let Some(node) = fields.get("via") else {
        report
            .error(entry.key, format!("{what} is external and has no `via`"))
            .help(help);
        return None;
    };
    match report.text(node, "`via`", "`via: igw`")? {
        "igw" => Some(Via::Igw),
        "vgw" => Some(Via::Vgw),
        other => {
            report
                .error(node.span, format!("there is no gateway {}", quoted(other)))
                .help(help);
            None
        }
    }
}
