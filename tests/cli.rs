//! The command line as a user runs it: the real program, on a real API server, as a service account that has rights in its own namespace only. The
//! operator is played by the test, which writes statuses and Secrets.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may end so")]

mod support;

#[path = "cli/kubeconfigs.rs"]
mod kubeconfigs;
#[path = "cli/person.rs"]
mod person;
#[path = "cli/verbs.rs"]
mod verbs;

use support::plane::Plane;

/// One API server for all: each test has a namespace of its own.
#[tokio::test(flavor = "multi_thread")]
async fn every_verb_does_its_work_with_rights_in_one_namespace() {
    let plane = Plane::start().await;
    plane.apply(&person::deletion_protection());
    tokio::join!(verbs::create_get_describe(&plane), verbs::sleep_and_time(&plane), verbs::wait(&plane), verbs::delete(&plane), kubeconfigs::life(&plane));
    kubeconfigs::create_and_wait(&plane).await;
    verbs::without_rights(&plane).await;
}
