//! Latencies between hosts and nodes, by host.

use super::{CatalogError, Step, decide, get_json, json};
use crate::key;
use crate::latency::HostLatency;
use crate::store::{MetaStore, Write};

/// Writes what a host has measured. What its record knows of other nodes is kept.
pub fn put_host_latency(store: &dyn MetaStore, latency: &HostLatency) -> Result<(), CatalogError> {
    let key = host_key(&latency.host)?;
    decide(store, || {
        let mut record = latency.clone();
        let write = match get_json::<HostLatency>(store, &key)? {
            None => Write::Create {
                key: key.clone(),
                bytes: json(&record),
                ephemeral: false,
            },
            Some((old, value)) => {
                record.keep_of(old);
                Write::Set {
                    key: key.clone(),
                    bytes: json(&record),
                    expected: value.version,
                }
            }
        };
        Ok(Step::Commit(vec![write], ()))
    })
}

/// What was measured from a host.
pub fn host_latency(
    store: &dyn MetaStore,
    host: &str,
) -> Result<Option<HostLatency>, CatalogError> {
    Ok(get_json(store, &host_key(host)?)?.map(|(record, _)| record))
}

/// What was measured from every host, sorted by host.
pub fn host_latencies(store: &dyn MetaStore) -> Result<Vec<HostLatency>, CatalogError> {
    let mut found = Vec::new();
    for host in store.list(key::LATENCIES)? {
        found.extend(host_latency(store, &host)?);
    }
    Ok(found)
}

fn host_key(host: &str) -> Result<String, CatalogError> {
    if !key::valid_name(host) {
        return Err(CatalogError::BadName {
            what: "host",
            name: host.to_owned(),
        });
    }
    Ok(key::latency(host))
}
