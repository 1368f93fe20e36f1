//! The clock, waiting for states, and why a run ends early.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Between two looks at a state: short against every timeout of the product.
const LOOK_EVERY: Duration = Duration::from_millis(30);

/// Set by SIGINT and SIGTERM.
pub(crate) fn interrupted() -> &'static Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    FLAG.get_or_init(Arc::default)
}

/// Why a run ends before its time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// This machine lacks something, or a file, process or namespace could not be made.
    #[error("cannot run: {0}")]
    Setup(String),
    /// The product did what it must not, or did not do what it must.
    #[error("{0}")]
    Broken(String),
    /// SIGINT or SIGTERM.
    #[error("interrupted")]
    Interrupted,
}

/// What everything here returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// For `map_err` of preparations.
pub(crate) fn setup<E: std::fmt::Display>(doing: impl Into<String>) -> impl FnOnce(E) -> Failure {
    let doing = doing.into();
    move |error| Failure::Setup(format!("{doing}: {error}"))
}

/// The same for a path.
pub(crate) fn setup_at<E: std::fmt::Display>(
    doing: &str,
    path: &Path,
) -> impl FnOnce(E) -> Failure {
    setup(format!("{doing} {}", path.display()))
}

/// The time.
#[must_use]
#[allow(clippy::disallowed_methods)] // real processes run in real time
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Lets time pass: how long a fault lasts, how long a guest thinks.
#[allow(clippy::disallowed_methods)] // never to wait for a state: that is `until`
pub(crate) fn nap(time: Duration) {
    std::thread::sleep(time);
}

/// Lets time pass in slices, so that an interrupt is noticed.
pub(crate) fn last(time: Duration) -> Outcome {
    let end = now() + time;
    while now() < end {
        check_interrupt()?;
        nap(LOOK_EVERY.min(end.saturating_duration_since(now())));
    }
    Ok(())
}

/// An error if the run shall end.
pub(crate) fn check_interrupt() -> Outcome {
    if interrupted().load(Ordering::Relaxed) {
        Err(Failure::Interrupted)
    } else {
        Ok(())
    }
}

/// What a look at a state found.
pub(crate) enum Look<T> {
    /// It holds.
    Found(T),
    /// Not yet; what it is instead, for the message if time runs out.
    NotYet(String),
}

/// Looks until the state holds.
///
/// # Errors
/// [`Failure::Broken`] with the last look's text after `limit`; whatever `look` returns.
pub(crate) fn until<T>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> Outcome<Look<T>>,
) -> Outcome<T> {
    let begin = now();
    loop {
        check_interrupt()?;
        let text = match look()? {
            Look::Found(found) => return Ok(found),
            Look::NotYet(text) => text,
        };
        if begin.elapsed() > limit {
            return Err(Failure::Broken(format!(
                "not within {} s: {what}; instead: {text}",
                limit.as_secs()
            )));
        }
        nap(LOOK_EVERY);
    }
}
