//! `nestling wait`.

use std::io::{IsTerminal, Write};
use std::pin::pin;
use std::time::Duration;

use anyhow::Result;
use futures::{Stream, StreamExt, future};
use kube::Api;
use kube::core::Status;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watch_object};
use nestling_core::api::KindCluster;
use tokio::time::{Instant, interval, timeout_at};

use super::exit::{GONE, STALLED, TIMED_OUT};
use super::failure::{Failure, command};
use super::host::{connect, no_such, refused};
use super::progress::{self, Verdict, verdict};
use super::select::answer;
use super::{Goal, HostArgs, WaitArgs};

/// How often the live view moves.
const TICK: Duration = Duration::from_millis(500);

/// Waits for a cluster.
pub async fn run(host: HostArgs, args: WaitArgs) -> Result<()> {
    let started = Instant::now();
    let host = connect(host).await?;
    let object = format!("{}/{}", host.namespace, args.name);
    let api = Api::<KindCluster>::namespaced(host.client, &host.namespace);
    let mut view = View::new(args.goal, started);

    // The watch itself never gives up, so what it would try for ever is asked once.
    let deadline = started + args.timeout;
    let first = timeout_at(deadline, api.get_opt(&args.name)).await;
    match first {
        Err(_) => return Err(timed_out(progress::timed_out(None, args.goal, args.timeout))),
        Ok(Err(error)) => return Err(answer(error, &format!("read KindCluster {object}"))),
        Ok(Ok(None)) => return Err(no_such(&host.namespace, &args.name).into()),
        Ok(Ok(Some(_))) => {}
    }

    let sights = watch_object(api, &args.name).default_backoff();
    let watched = timeout_at(deadline, Box::pin(follow(sights, &mut view, &object))).await;
    match watched {
        Ok(result) => result,
        Err(_) => Err(timed_out(progress::timed_out(view.newest.as_ref(), args.goal, args.timeout))),
    }
}

/// Follows the object to one of its ends.
async fn follow(sights: impl Stream<Item = watcher::Result<Option<KindCluster>>>, view: &mut View, object: &str) -> Result<()> {
    let mut sights = pin!(sights);
    let mut ticks = interval(TICK);
    loop {
        let sight = tokio::select! {
            sight = sights.next() => sight,
            _ = ticks.tick(), if view.live => {
                view.draw()?;
                continue;
            }
        };
        match sight {
            Some(Ok(Some(cluster))) => {
                let verdict = verdict(&cluster, view.goal);
                match verdict {
                    Verdict::Underway => view.show(cluster)?,
                    Verdict::Reached => return view.finish(cluster),
                    Verdict::Stalled => return Err(stalled(&cluster)),
                    Verdict::Deleting => return Err(gone(object, "is being deleted")),
                }
            }
            Some(Ok(None)) => return Err(gone(object, "is gone")),
            Some(Err(error)) => match refusal(&error) {
                Some(status) => return Err(refused(status.code, &status.message, "watch KindClusters").into()),
                None => view.note(&format!("the host cluster does not answer, trying again: {error}"))?,
            },
            // It has no end; should it have one, the time-out speaks.
            None => future::pending().await,
        }
    }
}

/// The answer of an API server that will not change by asking again.
fn refusal(error: &watcher::Error) -> Option<&Status> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status)) | watcher::Error::WatchStartFailed(kube::Error::Api(status))
            if matches!(status.code, 401 | 403) =>
        {
            Some(status)
        }
        _ => None,
    }
}

fn timed_out(what: String) -> anyhow::Error {
    Failure::new(what, format!("It goes on without you; wait longer with --timeout, or see `{}`.", command("describe"))).with_code(TIMED_OUT).into()
}

fn stalled(cluster: &KindCluster) -> anyhow::Error {
    let (what, next) = progress::stalled(cluster);
    Failure::new(what, next).with_code(STALLED).into()
}

fn gone(object: &str, how: &str) -> anyhow::Error {
    Failure::new(format!("KindCluster {object} {how}"), format!("If you need it, make it anew: `{}`.", command("create"))).with_code(GONE).into()
}

/// What is on the terminal, or was last said into the pipe.
struct View {
    goal: Goal,
    started: Instant,
    live: bool,
    newest: Option<KindCluster>,
    seen_at: Instant,
    drawn_lines: usize,
    said: String,
}

impl View {
    fn new(goal: Goal, started: Instant) -> Self {
        let live = std::io::stdout().is_terminal();
        Self { goal, started, live, newest: None, seen_at: started, drawn_lines: 0, said: String::new() }
    }

    /// Shows a new sight of the object.
    fn show(&mut self, cluster: KindCluster) -> Result<()> {
        let news = progress::news(&cluster, self.goal);
        // The time of an unchanged stage runs on; only a changed object carries newer ones.
        self.seen_at = Instant::now();
        self.newest = Some(cluster);
        if self.live { self.draw() } else { self.note(&news) }
    }

    /// One line, unless it was the last one already.
    fn note(&mut self, news: &str) -> Result<()> {
        if self.said == news {
            return Ok(());
        }
        news.clone_into(&mut self.said);
        self.erase()?;
        writeln!(std::io::stdout(), "{}", progress::line(self.started.elapsed(), news))?;
        self.draw()
    }

    /// The last lines of a wait that came to its goal.
    fn finish(&mut self, cluster: KindCluster) -> Result<()> {
        let success = progress::success(&cluster, self.goal, self.started.elapsed());
        self.newest = Some(cluster);
        self.draw()?;
        self.drawn_lines = 0;
        Ok(writeln!(std::io::stdout(), "{success}")?)
    }

    /// Draws the live view over the former one.
    fn draw(&mut self) -> Result<()> {
        let Some(cluster) = self.newest.as_ref().filter(|_| self.live) else { return Ok(()) };
        let lines = progress::screen(cluster, self.goal, self.started.elapsed(), self.seen_at.elapsed());
        let mut text = over(self.drawn_lines);
        // Without wrapping a line is a row, whatever the width of the terminal.
        text += "\x1b[?7l";
        for line in &lines {
            text += line;
            text += "\n";
        }
        text += "\x1b[?7h";
        self.drawn_lines = lines.len();
        put(&text)
    }

    /// Takes the live view away, so that something else can be said.
    fn erase(&mut self) -> Result<()> {
        let text = over(self.drawn_lines);
        self.drawn_lines = 0;
        put(&text)
    }
}

fn put(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// To the first of so many lines above, and everything below it erased.
fn over(lines: usize) -> String {
    if lines == 0 { String::new() } else { format!("\x1b[{lines}A\x1b[J") }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "the tables below read better")]
    fn sight(deleted: bool, conditions: &[(&str, &str)]) -> watcher::Result<Option<KindCluster>> {
        let conditions: Value = conditions
            .iter()
            .map(|(type_, status)| {
                json!({"type": type_, "status": status, "reason": "Settled", "message": "", "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"})
            })
            .collect();
        let metadata = json!({"name": "crane", "generation": 1, "deletionTimestamp": deleted.then_some("2026-01-01T00:00:00Z")});
        let object =
            json!({"apiVersion": "nestling.dev/v1alpha1", "kind": "KindCluster", "metadata": metadata, "spec": {}, "status": {"conditions": conditions}});
        Ok(Some(serde_json::from_value(object).unwrap()))
    }

    fn refused(code: u16) -> watcher::Error {
        watcher::Error::WatchStartFailed(kube::Error::Api(Box::new(Status { code, message: "no".to_owned(), ..Status::default() })))
    }

    /// How a wait ends after these sights; `None` if it goes on.
    async fn end(sights: Vec<watcher::Result<Option<KindCluster>>>) -> Option<Result<()>> {
        let mut view = View { live: false, ..View::new(Goal::Ready, Instant::now()) };
        tokio::select! {
            biased;
            result = follow(stream::iter(sights), &mut view, "marsh/crane") => Some(result),
            () = tokio::task::yield_now() => None,
        }
    }

    #[rstest]
    #[case::reached(vec![sight(false, &[]), sight(false, &[("Ready", "True")])], Some(0))]
    #[case::stalled(vec![sight(false, &[("Ready", "False"), ("Stalled", "True")])], Some(STALLED))]
    #[case::gone(vec![sight(false, &[]), Ok(None)], Some(GONE))]
    #[case::being_deleted(vec![sight(true, &[("Ready", "True")])], Some(GONE))]
    #[case::forbidden(vec![Err(refused(403))], Some(1))]
    #[case::a_host_that_comes_back(vec![Err(refused(503)), sight(false, &[("Ready", "True")])], Some(0))]
    #[case::underway(vec![sight(false, &[("Ready", "False")])], None)]
    #[tokio::test]
    async fn ends(#[case] sights: Vec<watcher::Result<Option<KindCluster>>>, #[case] expected: Option<u8>) {
        let code = end(sights).await.map(|result| match result {
            Ok(()) => 0,
            Err(error) => error.downcast_ref::<Failure>().map_or(1, Failure::code),
        });
        assert_eq!(code, expected);
    }
}
