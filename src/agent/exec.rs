//! A command in a container, by Docker's API.

use std::io;
use std::pin::Pin;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::ExecConfig;
use futures::Stream;
use tokio::io::AsyncWrite;

/// Where a command reads from.
pub type Input = Pin<Box<dyn AsyncWrite + Send>>;

/// What a command prints.
pub type Output = Pin<Box<dyn Stream<Item = Result<LogOutput, Error>> + Send>>;

/// Runs a command in a container to the end of its output, with `give` writing what it reads, for as long as it likes, and `take` reading what it prints:
/// what that made of it, and Docker's name for the run, for [`exit_code`].
///
/// # Errors
/// Docker's, and those of `take`.
pub async fn exec<T, E, G, K>(
    docker: &Docker,
    container: &str,
    config: ExecConfig,
    give: impl FnOnce(Input) -> G,
    take: impl FnOnce(Output) -> K,
) -> Result<(T, String), E>
where
    T: Default,
    E: From<Error>,
    G: Future<Output = io::Result<()>>,
    K: Future<Output = Result<T, E>>,
{
    let id = docker.create_exec(container, config).await?.id;
    let taken = match docker.start_exec(&id, None::<StartExecOptions>).await? {
        StartExecResults::Attached { output, input } => {
            let mut taken = Box::pin(take(output));
            // A command that has ended reads no more. Its exit code says what came of it, also of input that it did not take.
            tokio::select! {
                taken = &mut taken => taken?,
                _ = give(input) => taken.await?,
            }
        }
        StartExecResults::Detached => T::default(),
    };
    Ok((taken, id))
}

/// How a command ended; `None` where it still runs.
///
/// # Errors
/// Docker's.
pub async fn exit_code(docker: &Docker, id: &str) -> Result<Option<i64>, Error> {
    Ok(docker.inspect_exec(id).await?.exit_code)
}

/// For a command that is given nothing to read.
pub async fn nothing(_: Input) -> io::Result<()> {
    Ok(())
}
