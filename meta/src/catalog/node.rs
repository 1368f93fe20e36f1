//! Nodes: their permanent records, names and leases.

use super::{CatalogError, Step, decide, get_id, get_json, json};
use crate::key;
use crate::record::{NodeLive, NodeRecord, NodeState};
use crate::store::{MetaError, MetaStore, Write};
use serde::{Deserialize, Serialize};
use ukai_proto::NodeId;

/// As stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    record: NodeRecord,
    /// Highest start count of any run that registered or stopped cleanly: an older copy of the node's
    /// file shows itself by a lower one.
    #[serde(default)]
    start: u64,
}

/// May a node whose superblock has counted `start` runs begin another one? Refuses a node that was
/// forgotten, and an older copy of one.
pub fn check_start(store: &dyn MetaStore, node: NodeId, start: u64) -> Result<(), CatalogError> {
    not_forgotten(store, node)?;
    match get_json::<Stored>(store, &key::node(node))? {
        Some((stored, _)) => stored.admits(start),
        None => Ok(()),
    }
}

impl Stored {
    fn admits(&self, start: u64) -> Result<(), CatalogError> {
        if self.start <= start {
            return Ok(());
        }
        Err(CatalogError::OlderCopy {
            node: self.record.node,
            name: self.record.name.clone(),
            known: self.start,
            start,
        })
    }
}

fn not_forgotten(store: &dyn MetaStore, node: NodeId) -> Result<(), CatalogError> {
    match store.get(&key::forgotten(node))? {
        None => Ok(()),
        Some(value) => Err(CatalogError::Forgotten {
            node,
            name: String::from_utf8_lossy(&value.bytes).into_owned(),
        }),
    }
}

/// The node has counted `start` durably: copies made before are old from now on.
pub fn raise_start(store: &dyn MetaStore, node: NodeId, start: u64) -> Result<(), CatalogError> {
    decide(store, || {
        let (old, value) = get_json::<Stored>(store, &key::node(node))?
            .ok_or_else(|| CatalogError::NoNode(node.to_string()))?;
        if old.start >= start {
            return Ok(Step::Done(()));
        }
        let write = Write::Set {
            key: key::node(node),
            bytes: json(&Stored { start, ..old }),
            expected: value.version,
        };
        Ok(Step::Commit(vec![write], ()))
    })
}

/// Removes the records of a node that never comes back, and marks its uuid so that it never can. Its name
/// is free then. Refused while it lives. The caller has taken it out of all maps.
pub fn forget_node(store: &dyn MetaStore, node: NodeId) -> Result<(), CatalogError> {
    let mut tried = false;
    decide(store, || {
        let Some((stored, value)) = get_json::<Stored>(store, &key::node(node))? else {
            // After an unknown outcome this may be our own work.
            let done = tried && store.get(&key::forgotten(node))?.is_some();
            return if done {
                Ok(Step::Done(()))
            } else {
                Err(CatalogError::NoNode(node.to_string()))
            };
        };
        // It would change its record to become alive: the condition on that covers this.
        if let Some((live, _)) = get_json::<NodeLive>(store, &key::live(node))? {
            return Err(CatalogError::AlreadyLive {
                node,
                incarnation: live.incarnation,
            });
        }
        let name = stored.record.name;
        let mut writes = vec![
            Write::Delete {
                key: key::node(node),
                expected: value.version,
            },
            Write::Create {
                key: key::forgotten(node),
                bytes: name.clone().into_bytes(),
                ephemeral: false,
            },
        ];
        if let Some((by, value)) = get_id::<NodeId>(store, &key::node_name(&name))?
            && by == node
        {
            writes.push(Write::Delete {
                key: key::node_name(&name),
                expected: value.version,
            });
        }
        tried = true;
        Ok(Step::Commit(writes, ()))
    })
}

/// Writes the node's record and takes its lease: it is alive while this store's session is.
///
/// Refuses a name that belongs to another uuid, a uuid that is alive under another incarnation, one that
/// was forgotten, and an older copy of the node.
/// The same incarnation again (after its session expired) takes the lease over. The administrator's
/// `draining` mark is kept.
pub fn register_node(
    store: &dyn MetaStore,
    record: &NodeRecord,
    live: &NodeLive,
) -> Result<(), CatalogError> {
    for (what, name) in [("node", &record.name), ("site", &record.site)] {
        if !key::valid_name(name) {
            return Err(CatalogError::BadName {
                what,
                name: name.clone(),
            });
        }
    }
    let node = record.node;
    // After an unknown outcome the lease may be the one this call took: then it is done.
    let mut tried = false;
    let start = live.incarnation.start;
    decide(store, || {
        not_forgotten(store, node)?;
        let mut older = Ok(());
        let mut writes = Vec::new();
        match get_id::<NodeId>(store, &key::node_name(&record.name))? {
            Some((by, _)) if by != node => {
                return Err(CatalogError::NodeNameTaken {
                    name: record.name.clone(),
                    by,
                });
            }
            Some(_) => {}
            None => writes.push(Write::Create {
                key: key::node_name(&record.name),
                bytes: node.to_string().into_bytes(),
                ephemeral: false,
            }),
        }
        match get_json::<Stored>(store, &key::node(node))? {
            None => writes.push(Write::Create {
                key: key::node(node),
                bytes: json(&Stored {
                    record: record.clone(),
                    start,
                }),
                ephemeral: false,
            }),
            Some((stored, value)) => {
                older = stored.admits(start);
                let old = stored.record;
                let record = NodeRecord {
                    draining: record.draining || old.draining,
                    ..record.clone()
                };
                writes.push(Write::Set {
                    key: key::node(node),
                    bytes: json(&Stored {
                        record: record.clone(),
                        start,
                    }),
                    expected: value.version,
                });
                if old.name != record.name
                    && let Some((by, value)) = get_id::<NodeId>(store, &key::node_name(&old.name))?
                    && by == node
                {
                    writes.push(Write::Delete {
                        key: key::node_name(&old.name),
                        expected: value.version,
                    });
                }
            }
        }
        match get_json::<NodeLive>(store, &key::live(node))? {
            Some((other, _)) if other.incarnation != live.incarnation => {
                return Err(CatalogError::AlreadyLive {
                    node,
                    incarnation: other.incarnation,
                });
            }
            Some((own, _)) if tried && own == *live => return Ok(Step::Done(())),
            Some((_, value)) => writes.push(Write::Delete {
                key: key::live(node),
                expected: value.version,
            }),
            None => {}
        }
        // That somebody else is this node says more, and comes first.
        older?;
        writes.push(Write::Create {
            key: key::live(node),
            bytes: json(live),
            ephemeral: true,
        });
        tried = true;
        Ok(Step::Commit(writes, ()))
    })
}

/// Rewrites the content of the node's lease (space in use), if it is this incarnation's.
pub fn update_live(
    store: &dyn MetaStore,
    node: NodeId,
    live: &NodeLive,
) -> Result<(), CatalogError> {
    decide(store, || {
        let Some((old, value)) = get_json::<NodeLive>(store, &key::live(node))? else {
            return Err(MetaError::SessionExpired.into());
        };
        if old.incarnation != live.incarnation {
            return Err(CatalogError::AlreadyLive {
                node,
                incarnation: old.incarnation,
            });
        }
        if old == *live {
            return Ok(Step::Done(()));
        }
        let write = Write::Set {
            key: key::live(node),
            bytes: json(live),
            expected: value.version,
        };
        Ok(Step::Commit(vec![write], ()))
    })
}

/// Gives the node's lease back at a clean stop, if it is this incarnation's.
pub fn deregister_live(
    store: &dyn MetaStore,
    node: NodeId,
    live: &NodeLive,
) -> Result<(), CatalogError> {
    decide(store, || {
        match get_json::<NodeLive>(store, &key::live(node))? {
            Some((old, value)) if old.incarnation == live.incarnation => {
                let write = Write::Delete {
                    key: key::live(node),
                    expected: value.version,
                };
                Ok(Step::Commit(vec![write], ()))
            }
            _ => Ok(Step::Done(())),
        }
    })
}

/// All nodes, sorted by name.
pub fn list_nodes(store: &dyn MetaStore) -> Result<Vec<NodeState>, CatalogError> {
    let mut nodes = Vec::new();
    for id in store.list(key::NODES)? {
        // A foreign key among the nodes must not hide the others.
        let Ok(id) = id.parse::<NodeId>() else {
            log::warn!("metadata key {}/{id} is no node", key::NODES);
            continue;
        };
        nodes.extend(node(store, id)?);
    }
    nodes.sort_by(|a, b| a.record.name.cmp(&b.record.name));
    Ok(nodes)
}

/// One node.
pub fn node(store: &dyn MetaStore, node: NodeId) -> Result<Option<NodeState>, CatalogError> {
    let Some((record, _)) = get_json::<NodeRecord>(store, &key::node(node))? else {
        return Ok(None);
    };
    let live = get_json::<NodeLive>(store, &key::live(node))?.map(|(live, _)| live);
    Ok(Some(NodeState { record, live }))
}

/// The node that people call so.
pub fn node_by_name(store: &dyn MetaStore, name: &str) -> Result<Option<NodeState>, CatalogError> {
    if !key::valid_name(name) {
        return Ok(None);
    }
    match get_id::<NodeId>(store, &key::node_name(name))? {
        Some((id, _)) => node(store, id),
        None => Ok(None),
    }
}

/// Sets or clears the mark "take no new chunks".
pub fn set_draining(
    store: &dyn MetaStore,
    node: NodeId,
    draining: bool,
) -> Result<(), CatalogError> {
    decide(store, || {
        let (mut stored, value) = get_json::<Stored>(store, &key::node(node))?
            .ok_or_else(|| CatalogError::NoNode(node.to_string()))?;
        if stored.record.draining == draining {
            return Ok(Step::Done(()));
        }
        stored.record.draining = draining;
        let write = Write::Set {
            key: key::node(node),
            bytes: json(&stored),
            expected: value.version,
        };
        Ok(Step::Commit(vec![write], ()))
    })
}
