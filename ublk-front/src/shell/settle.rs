//! A frontend without a device: it waits until every replica is in sync.

use super::context::{ControlInput, FrontContext, FrontendError, FrontendOrder};
use super::control::Question;
use super::{clock, process};
use crate::core::api::Presented;
use serde_json::Value;
use std::time::Duration;

/// How often `settle` looks.
const SETTLE_LOOK: Duration = Duration::from_millis(200);
/// `settle` tells its progress this often.
const SETTLE_TELL: Duration = Duration::from_secs(2);

/// Waits until control has nothing left to do.
pub(super) fn serve(context: &FrontContext) -> Result<(), FrontendError> {
    let Presented { name, .. } = &context.presented;
    let mut told = String::new();
    let mut told_at = clock::now();
    loop {
        let (reply, answer) = flume::bounded(1);
        context
            .control
            .post(ControlInput::Ask(Question::Status, reply));
        let status = answer.recv().unwrap_or_default();
        let control = &status["control"];
        if control["settled"] == Value::Bool(true) {
            process::say(&format!("settled {name}"));
            return Ok(());
        }
        let line = progress(control);
        if line != told && (told.is_empty() || clock::now().since(told_at) > SETTLE_TELL) {
            tracing::info!("{name}: {line}");
            (told, told_at) = (line, clock::now());
        }
        if control["phase"] == "ended" {
            return Ok(());
        }
        if let Some(FrontendOrder::Stop { .. }) = context.orders.recv_timeout(SETTLE_LOOK) {
            return Err(FrontendError::Failed(format!(
                "stopped before {name} was settled"
            )));
        }
    }
}

/// What is going on, in words.
fn progress(control: &Value) -> String {
    let sync = &control["sync"];
    if sync.is_object() {
        return format!(
            "filling {}: {} of {} chunks compared, {} sectors copied",
            sync["name"].as_str().unwrap_or("?"),
            sync["chunks_done"],
            sync["chunks_total"],
            sync["sectors_copied"]
        );
    }
    let nodes = control["nodes"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let absent: Vec<&str> = nodes
        .iter()
        .filter(|node| node["connected"] == Value::Bool(false))
        .filter_map(|node| node["name"].as_str())
        .collect();
    if absent.is_empty() {
        "changing the configuration".to_owned()
    } else {
        format!("waiting for node {}", absent.join(", "))
    }
}
