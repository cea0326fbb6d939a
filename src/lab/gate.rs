//! Who may enter which namespace: the answer to `enter` requests.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde_json::json;

use super::control::{Request, Response};
use super::{LabError, Namespace, Privilege, hosts};
use crate::model::{EntityIx, Model};

/// Hands out the namespaces of a running lab. Cheap to share with the thread
/// that serves the control socket; it keeps no device and no mount alive.
#[derive(Debug)]
pub struct Gate {
    lab: String,
    user_namespace: Option<OwnedFd>,
    doors: Vec<Door>,
}

#[derive(Debug)]
struct Door {
    entity: String,
    namespace: Arc<OwnedFd>,
    hosts: String,
}

impl Gate {
    pub(super) fn new(
        lab: &str,
        privilege: Privilege,
        model: &Model,
        namespaces: &[Namespace],
    ) -> Result<Self, LabError> {
        let user_namespace = match privilege {
            Privilege::Root => None,
            Privilege::UserNamespace => {
                let opened = File::open("/proc/self/ns/user")
                    .map_err(|error| LabError::system("open the user namespace", error))?;
                Some(opened.into())
            }
        };
        let machine = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let doors = namespaces
            .iter()
            .enumerate()
            .map(|(i, namespace)| Door {
                entity: namespace.entity().to_owned(),
                namespace: namespace.share(),
                hosts: hosts::file(model, EntityIx::new(i), &machine),
            })
            .collect();
        Ok(Self {
            lab: lab.to_owned(),
            user_namespace,
            doors,
        })
    }

    /// Answers an `enter` request: the hosts file, the appliance's pid, and
    /// as descriptors the user namespace (where there is one) and the
    /// entity's network namespace.
    pub fn enter(&self, request: &Request) -> Response {
        let Some(name) = request.entity.as_deref() else {
            return Response::error("'enter' needs an entity");
        };
        let Some(door) = self.doors.iter().find(|door| door.entity == name) else {
            return self.unknown(name);
        };
        let mut fds = Vec::with_capacity(2);
        for fd in self.user_namespace.iter().chain([&*door.namespace]) {
            match fd.try_clone() {
                Ok(fd) => fds.push(fd),
                Err(error) => return Response::error(format!("share a namespace: {error}")),
            }
        }
        Response {
            body: json!({
                "lab": self.lab,
                "entity": name,
                "pid": std::process::id(),
                "user_namespace": self.user_namespace.is_some(),
                "hosts": door.hosts,
            }),
            fds,
        }
    }

    fn unknown(&self, name: &str) -> Response {
        let known: Vec<&str> = self.doors.iter().map(|door| &*door.entity).collect();
        Response::from(json!({
            "error": format!("no entity '{name}'"),
            "unknown_entity": name,
            "near": nearest(name, &known),
            "entities": known,
        }))
    }
}

/// The known name that a misspelt one most likely stands for.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|&candidate| (distance(name, candidate), candidate))
        .filter(|&(distance, candidate)| distance <= candidate.len().div_ceil(3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance; both sides are cut at 64 bytes.
fn distance(a: &str, b: &str) -> usize {
    let cut = |text: &str| text.bytes().take(64).collect::<Vec<u8>>();
    let (a, b) = (cut(a), cut(b));
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_entity_is_guessed_and_a_strange_one_is_not() {
        let known = ["web-1", "web-2", "db", "laptop"];
        assert_eq!(nearest("web1", &known), Some("web-1"));
        assert_eq!(nearest("lapotp", &known), Some("laptop"));
        assert_eq!(nearest("mainframe", &known), None);
        assert_eq!(nearest("", &known), None);
    }
}
