//! What this process reads, on its way to a command in a node.

use std::io::{self, ErrorKind, Read};

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// Pieces that wait to be sent, and the size of one.
const AHEAD: (usize, usize) = (4, 64 << 10);

/// Pieces of an input, read by a thread of its own: one of the runtime's would keep this process from ending while it waits for a key.
pub struct Input(mpsc::Receiver<io::Result<Vec<u8>>>);

impl Input {
    /// Standard input.
    pub fn standard() -> Self {
        Self::of(io::stdin())
    }

    fn of(mut from: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = mpsc::channel(AHEAD.0);
        std::thread::spawn(move || {
            let mut buffer = vec![0; AHEAD.1];
            loop {
                let piece = match from.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(read) => Ok(buffer[..read].to_vec()),
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => Err(error),
                };
                let failed = piece.is_err();
                if sender.blocking_send(piece).is_err() || failed {
                    return;
                }
            }
        });
        Self(receiver)
    }

    /// Copies all of it, as it comes.
    ///
    /// # Errors
    /// Those of either side.
    pub async fn copy(mut self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        while let Some(piece) = self.0.recv().await {
            to.write_all(&piece?).await?;
            to.flush().await?;
        }
        Ok(())
    }

    /// Writes all of it as a command behind [`unframed`] reads it.
    ///
    /// # Errors
    /// Those of either side.
    pub async fn frame(mut self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        while let Some(piece) = self.0.recv().await {
            let piece = piece?;
            to.write_all(format!("{}\n", piece.len()).as_bytes()).await?;
            to.write_all(&piece).await?;
            to.flush().await?;
        }
        to.write_all(b"0\n").await?;
        to.flush().await
    }
}

/// A command that reads what [`Input::frame`] writes.
pub fn unframed(words: &[String]) -> Vec<String> {
    ["bash", "-c", UNFRAME, "bash"].into_iter().map(str::to_owned).chain(words.iter().cloned()).collect()
}

/// Runs its arguments, for bash in a node, with what [`Input::frame`] wrote as standard input, which ends where it ended here. What the command does not read is
/// left to a process that goes with the connection.
const UNFRAME: &str = r#"
frames() { while read -r size && [ "$size" -gt 0 ]; do head -c "$size" || return; done; }
exec "$@" < <(frames 2> /dev/null)
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;
    use std::time::Duration;

    /// What a command makes of an input that is never closed, and its exit code.
    async fn made_of(input: Vec<u8>, command: &[&str]) -> (Vec<u8>, Option<i32>) {
        let words = unframed(&command.iter().map(|&word| word.to_owned()).collect::<Vec<_>>());
        let mut child = tokio::process::Command::new(&words[0]).args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let feed = async {
            // A command that does not read is no failure.
            let _ = Input::of(io::Cursor::new(input)).frame(&mut stdin).await;
            std::future::pending::<()>().await;
        };
        let ended = tokio::time::timeout(Duration::from_secs(20), child.wait_with_output());
        tokio::select! {
            ended = ended => { let ended = ended.unwrap().unwrap(); (ended.stdout, ended.status.code()) }
            () = feed => unreachable!(),
        }
    }

    #[tokio::test]
    async fn a_command_sees_every_byte_and_the_end() {
        let input: Vec<u8> = (0..500_000_u32).map(|index| (index % 253).to_le_bytes()[0]).collect();
        assert!(made_of(input.clone(), &["cat"]).await == (input, Some(0)));
        assert_eq!(made_of(vec![], &["cat"]).await, (vec![], Some(0)));
    }

    #[tokio::test]
    async fn a_command_that_does_not_read_ends_as_it_likes() {
        assert_eq!(made_of(vec![b'x'; 5_000_000], &["sh", "-c", "echo done; exit 7"]).await, (b"done\n".to_vec(), Some(7)));
    }
}
