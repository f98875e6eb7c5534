//! Calls of the host's API server: each bounded in time, each failure put into one of few classes.

use std::error::Error as _;
use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use kube::Api;
use kube::api::ListParams;
use kube::core::Status;
use nestling_core::api::conditions::clip;
use nestling_core::api::reasons::Reason;
use nestling_core::plan::classify::classify;
use nestling_core::plan::problem::Problem;
use serde::de::DeserializeOwned;

/// Bound of one call, the client's own retries included.
pub const TIMEOUT: Duration = Duration::from_secs(15);

/// Entries per page of a list.
const PAGE: u32 = 500;

/// Longest text of the API server that is passed on, in bytes.
const TEXT_LIMIT: usize = 1024;

/// A call that failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It was answered with a refusal, or not at all.
    #[error("failed to {what}: {}", describe(source))]
    Failed {
        /// What was to be done.
        what: &'static str,
        /// Why it was not.
        source: Box<kube::Error>,
    },
    /// No answer came in time.
    #[error("gave up after {}s waiting for the host's API server to {what}", TIMEOUT.as_secs())]
    TimedOut {
        /// What was to be done.
        what: &'static str,
    },
}

/// Does a call, bounded by [`TIMEOUT`].
pub async fn call<T>(what: &'static str, future: impl Future<Output = Result<T, kube::Error>>) -> Result<T, CallError> {
    match tokio::time::timeout(TIMEOUT, future).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(CallError::Failed { what, source: Box::new(source) }),
        Err(_) => Err(CallError::TimedOut { what }),
    }
}

/// Every object that matches, over all pages, from the API server's newest state.
pub async fn list_all<K>(what: &'static str, api: &Api<K>, params: ListParams) -> Result<Vec<K>, CallError>
where
    K: Clone + DeserializeOwned + Debug,
{
    let mut params = params.limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = call(what, api.list(&params)).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(all),
        }
    }
}

/// What a failed call means.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Trouble {
    /// There is no such object (or, on a creation, no such namespace).
    Gone,
    /// Somebody else was first, or what was read is out of date: look again.
    Conflict,
    /// A `test` of a JSON patch did not hold; nothing was changed.
    TestFailed,
    /// The namespace is being deleted and takes nothing new.
    NamespaceTerminating,
    /// The API server will not do it.
    Refused(Problem),
    /// The API server cannot do it now; whether it was done is not known.
    Unavailable(Problem),
}

impl CallError {
    /// What it means.
    pub fn trouble(&self) -> Trouble {
        let problem = |reason| Problem::new(reason, self.to_string());
        let Self::Failed { source, .. } = self else { return Trouble::Unavailable(problem(Reason::HostUnavailable)) };
        let kube::Error::Api(status) = source.as_ref() else { return Trouble::Unavailable(problem(Reason::HostUnavailable)) };
        match status.code {
            404 | 410 => Trouble::Gone,
            409 => Trouble::Conflict,
            422 if is_failed_test(status) => Trouble::TestFailed,
            403 if is_terminating(status) => Trouble::NamespaceTerminating,
            400..=428 | 430..=499 => Trouble::Refused(problem(refusal(&status.message))),
            _ => Trouble::Unavailable(problem(Reason::HostUnavailable)),
        }
    }

    /// Whether the answer was that there is no such object.
    pub fn is_gone(&self) -> bool {
        self.trouble() == Trouble::Gone
    }

    /// Whether the answer was that we have no right to it.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Failed { source, .. } if matches!(source.as_ref(), kube::Error::Api(status) if status.code == 403))
    }

    /// Label for metrics.
    pub fn reason(&self) -> &'static str {
        match self.trouble() {
            Trouble::Gone => "Gone",
            Trouble::Conflict | Trouble::TestFailed => "Conflict",
            Trouble::NamespaceTerminating => "NamespaceTerminating",
            Trouble::Refused(problem) | Trouble::Unavailable(problem) => problem.reason.as_str(),
        }
    }
}

/// The API server answers a JSON patch that does not apply with one fixed text and without causes; a patched object that is invalid comes with
/// causes (`k8s.io/apiserver`, `endpoints/handlers/patch.go`).
fn is_failed_test(status: &Status) -> bool {
    status.details.as_ref().is_none_or(|details| details.causes.is_empty()) && status.message.starts_with("the server rejected our request")
}

fn is_terminating(status: &Status) -> bool {
    let by_cause = status.details.iter().flat_map(|details| &details.causes).any(|cause| cause.reason == "NamespaceTerminating");
    by_cause || status.message.contains("because it is being terminated")
}

fn refusal(message: &str) -> Reason {
    match classify(message, Reason::HostRefused) {
        reason @ (Reason::PodSecurity | Reason::QuotaExceeded) => reason,
        // LimitRanger and a quota that wants limits.
        _ if message.contains("failed quota") || message.contains(" usage per ") => Reason::QuotaExceeded,
        _ => Reason::HostRefused,
    }
}

/// The text of an error. Of an answer that cannot be read only that: it may quote a Secret.
fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => clip(&status.message, TEXT_LIMIT).to_owned(),
        kube::Error::Api(status) => format!("status {}", status.code),
        kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => "the answer cannot be read".to_owned(),
        other => {
            let mut text = other.to_string();
            let mut source = other.source();
            while let Some(inner) = source {
                let inner_text = inner.to_string();
                if !text.contains(&inner_text) {
                    text = format!("{text}: {inner_text}");
                }
                source = inner.source();
            }
            clip(&text, TEXT_LIMIT).to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    fn refused(code: u16, reason: &str, message: &str, causes: &[&str]) -> CallError {
        let causes: Vec<_> = causes.iter().map(|cause| json!({"reason": cause})).collect();
        let status: Status = serde_json::from_value(json!({
            "status": "Failure", "code": code, "reason": reason, "message": message, "details": {"causes": causes},
        }))
        .unwrap();
        CallError::Failed { what: "create the pod", source: Box::new(kube::Error::Api(Box::new(status))) }
    }

    #[rstest]
    #[case(403, "Forbidden", "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": privileged", &[], Reason::PodSecurity)]
    #[case(403, "Forbidden", "pods \"x\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1", &[], Reason::QuotaExceeded)]
    #[case(403, "Forbidden", "pods \"x\" is forbidden: failed quota: q: must specify limits.cpu", &[], Reason::QuotaExceeded)]
    #[case(403, "Forbidden", "pods \"x\" is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi", &[], Reason::QuotaExceeded)]
    #[case(403, "Forbidden", "secrets is forbidden: User \"u\" cannot create resource \"secrets\"", &[], Reason::HostRefused)]
    #[case(422, "Invalid", "Pod \"x\" is invalid: spec.containers[0].name: Required value", &["FieldValueRequired"], Reason::HostRefused)]
    #[case(400, "BadRequest", "unknown field", &[], Reason::HostRefused)]
    fn refusals(#[case] code: u16, #[case] reason: &str, #[case] message: &str, #[case] causes: &[&str], #[case] expected: Reason) {
        match refused(code, reason, message, causes).trouble() {
            Trouble::Refused(problem) => assert_eq!(problem.reason, expected, "{problem}"),
            other => panic!("{other:?}"),
        }
    }

    #[rstest]
    #[case(429, "too many requests")]
    #[case(500, "etcdserver: leader changed")]
    #[case(503, "")]
    #[case(504, "timeout")]
    fn what_may_pass_by_itself(#[case] code: u16, #[case] message: &str) {
        match refused(code, "", message, &[]).trouble() {
            Trouble::Unavailable(problem) => assert_eq!(problem.reason, Reason::HostUnavailable),
            other => panic!("{other:?}"),
        }
    }

    #[rstest]
    #[case(refused(404, "NotFound", "no", &[]), Trouble::Gone)]
    #[case(refused(409, "AlreadyExists", "pods \"x\" already exists", &[]), Trouble::Conflict)]
    #[case(refused(409, "Conflict", "the object has been modified", &[]), Trouble::Conflict)]
    #[case(refused(422, "Invalid", "the server rejected our request due to an error in our request", &[]), Trouble::TestFailed)]
    #[case(
        refused(403, "Forbidden", "secrets \"s\" is forbidden: unable to create new content in namespace n because it is being terminated", &["NamespaceTerminating"]),
        Trouble::NamespaceTerminating
    )]
    fn the_rest(#[case] error: CallError, #[case] expected: Trouble) {
        assert_eq!(error.trouble(), expected);
    }

    #[test]
    fn an_unreadable_answer_is_not_quoted() {
        let secret = serde_json::from_str::<u8>("\"top-secret\"").unwrap_err();
        let error = CallError::Failed { what: "read the keys", source: Box::new(kube::Error::SerdeError(secret)) };
        assert!(!error.to_string().contains("top-secret"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_bounded_and_says_what_was_waited_for() {
        let error = call::<()>("list pods", std::future::pending()).await.unwrap_err();
        assert_eq!(error.to_string(), "gave up after 15s waiting for the host's API server to list pods");
    }
}
