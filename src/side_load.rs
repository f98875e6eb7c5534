//! Images on their way into nodes: what the agent (`spec.preload`) and the command line (`load`) have in common. An archive is read once and streamed into any
//! number of nodes at the same time; in each of them [`SCRIPT`] hands it to containerd.
//!
//! The end of a stream is said, not shown. The standard input of a command that Kubernetes runs in a pod cannot be closed before version 5 of that protocol
//! (Kubernetes 1.30), and what merely broke off must not pass for a whole archive.

use std::io;

use hyper::body::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// Takes over what [`pour`] writes, and prints the names of all images that the node has then. For bash, in a node: its `head` reads no more than it is told,
/// and `read` no more than a line.
///
/// containerd takes what the node's own platform needs out of an archive for several, so one that lacks the others will do (`kind load` asks for all). It does so by
/// itself (`--local`, as ever before containerd 2): its transfer service only unpacks for overlayfs, and takes an image without the node's platform for one that is there.
pub const SCRIPT: &str = r#"
set -euo pipefail
images() { ctr --namespace=k8s.io images "$@"; }
snapshotter=$(containerd config dump | sed -n "s/^ *snapshotter = [\"']\([a-z][-a-z]*\)[\"'].*/\1/p" | sed -n 1p)
case $(images import --help) in *--local*) local=--local ;; *) local= ;; esac
archive() {
  while read -r size; do
    case $size in
      0) return 0 ;;
      *[!0-9]* | '') break ;;
      *) head -c "$size" ;;
    esac
  done
  echo 'the archive broke off' >&2
  return 1
}
take() {
  local code=0
  images import $local --snapshotter="${snapshotter:-overlayfs}" - > /dev/null || code=$?
  # What stands behind the end of an archive, or follows a failure, is not needed; whoever sends it must not be cut off.
  cat > /dev/null
  return $code
}
archive | take
while read -r how from to; do
  case $how in
    end) images ls -q; exit 0 ;;
    name | rename) images tag --force "$from" "$to" > /dev/null ;;
  esac
  if [ "$how" = rename ]; then images rm "$from" > /dev/null; fi
done
echo 'the names broke off' >&2
exit 1
"#;

/// Bytes of a frame. Each costs a process in the node.
const FRAME: usize = 1 << 20;

/// Frames that wait for a node. The slowest one sets the pace.
const AHEAD: usize = 4;

/// A further name for an image.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Naming {
    /// The name that the archive gives it.
    pub from: String,
    /// The further one.
    pub to: String,
    /// Whether the first one stays.
    pub keep: bool,
}

/// What goes to a node.
#[derive(Clone, Debug)]
enum Part {
    Data(Bytes),
    /// The archive is whole; these are further names.
    End(Vec<Naming>),
}

/// One archive, on its way to several nodes.
#[derive(Debug)]
pub struct Sender {
    lanes: Vec<mpsc::Sender<Part>>,
    gathered: Vec<u8>,
}

/// One node's end of a [`Sender`].
#[derive(Debug)]
pub struct Receiver(mpsc::Receiver<Part>);

/// A way to so many nodes.
pub fn channel(nodes: usize) -> (Sender, Vec<Receiver>) {
    let (lanes, receivers) = (0..nodes).map(|_| mpsc::channel(AHEAD)).map(|(sender, receiver)| (sender, Receiver(receiver))).unzip();
    (Sender { lanes, gathered: Vec::with_capacity(FRAME) }, receivers)
}

impl Sender {
    /// Sends the next bytes of the archive. Waits for the slowest node; one whose receiver is gone is left out. Tells whether any is left.
    pub async fn send(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(FRAME - self.gathered.len()));
            self.gathered.extend_from_slice(now);
            bytes = later;
            if self.gathered.len() == FRAME {
                self.flush().await;
            }
        }
        !self.lanes.is_empty()
    }

    /// The archive is whole. A sender that is dropped without this has broken off.
    pub async fn end(mut self, names: Vec<Naming>) {
        self.flush().await;
        self.broadcast(&Part::End(names)).await;
    }

    async fn flush(&mut self) {
        if !self.gathered.is_empty() {
            let frame = std::mem::replace(&mut self.gathered, Vec::with_capacity(FRAME));
            self.broadcast(&Part::Data(Bytes::from(frame))).await;
        }
    }

    async fn broadcast(&mut self, part: &Part) {
        let mut gone = Vec::new();
        for (index, lane) in self.lanes.iter().enumerate() {
            if lane.send(part.clone()).await.is_err() {
                gone.push(index);
            }
        }
        for index in gone.into_iter().rev() {
            self.lanes.swap_remove(index);
        }
    }
}

/// Writes an archive to the standard input of [`SCRIPT`], up to its end or to where it broke off.
///
/// # Errors
/// Those of the output.
pub async fn pour(mut from: Receiver, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    while let Some(part) = from.0.recv().await {
        match part {
            Part::Data(bytes) => {
                to.write_all(format!("{}\n", bytes.len()).as_bytes()).await?;
                to.write_all(&bytes).await?;
            }
            Part::End(names) => {
                to.write_all(b"0\n").await?;
                for Naming { from, to: name, keep } in names {
                    to.write_all(format!("{} {from} {name}\n", if keep { "name" } else { "rename" }).as_bytes()).await?;
                }
                to.write_all(b"end\n").await?;
                return to.flush().await;
            }
        }
    }
    to.write_all(b"broken\n").await?;
    to.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::process::Stdio;

    /// Runs the script with stand-ins for the node's programs; what it printed, what it complained of, and whether it ended well.
    async fn node(directory: &Path, import: &str, receiver: Receiver) -> (String, String, bool) {
        let program = |name: &str, text: &str| {
            let path = directory.join(name);
            std::fs::write(&path, format!("#!/bin/bash\n{text}\n")).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        program("containerd", "echo '[plugins.x]'; echo \"  snapshotter = ''\"; echo \"    snapshotter = 'native'\"; echo '  snapshotter = \"other\"'");
        program(
            "ctr",
            &format!(
                "case $* in *--help) echo ' --local x'; exit ;; esac; echo \"$*\" >> {0}/asked; case $3 in import) {import} ;; ls) echo docker.io/library/a:1 ;; esac",
                directory.display()
            ),
        );
        let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
        let mut child = tokio::process::Command::new("bash")
            .args(["-c", SCRIPT])
            .env("PATH", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Kept open, as by Kubernetes.
        let mut stdin = child.stdin.take().unwrap();
        pour(receiver, &mut stdin).await.unwrap();
        let output = tokio::time::timeout(std::time::Duration::from_secs(30), child.wait_with_output()).await.unwrap().unwrap();
        drop(stdin);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&output.stdout), text(&output.stderr), output.status.success())
    }

    /// Bytes in which every frame differs, and nothing is a line.
    fn archive() -> Vec<u8> {
        (0..FRAME * 3 + 12_345).map(|index| u8::try_from((index * 7 + index / 251) % 256).unwrap()).collect()
    }

    #[tokio::test]
    async fn every_node_gets_every_byte_and_the_names() {
        let content = archive();
        let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (mut sender, mut receivers) = channel(3);
        // A node that is lost is no hindrance to the others.
        drop(receivers.pop());
        let feed = async {
            for piece in content.chunks(99_991) {
                assert!(sender.send(piece).await);
            }
            sender.end(vec![Naming { from: "a".into(), to: "b".into(), keep: true }, Naming { from: "c".into(), to: "d".into(), keep: false }]).await;
        };
        let nodes = directories.iter().zip(receivers).map(|(directory, receiver)| async {
            let said = node(directory.path(), &format!("cat > {}/got", directory.path().display()), receiver).await;
            (said, std::fs::read(directory.path().join("got")).unwrap(), std::fs::read_to_string(directory.path().join("asked")).unwrap())
        });
        let ((), nodes) = tokio::join!(feed, futures::future::join_all(nodes));
        for (said, got, asked) in nodes {
            assert_eq!(said, ("docker.io/library/a:1\n".to_owned(), String::new(), true));
            assert!(got == content);
            let expected = ["import --local --snapshotter=native -", "tag --force a b", "tag --force c d", "rm c", "ls -q"];
            assert_eq!(asked.lines().collect::<Vec<_>>(), expected.map(|asked| format!("--namespace=k8s.io images {asked}")));
        }
    }

    #[tokio::test]
    async fn what_breaks_off_is_no_archive_although_containerd_is_content() {
        let directory = tempfile::tempdir().unwrap();
        let (mut sender, mut receivers) = channel(1);
        sender.send(&archive()[..FRAME]).await;
        drop(sender);
        let (_, complaint, well) = node(directory.path(), "cat > /dev/null", receivers.pop().unwrap()).await;
        assert!(!well && complaint.contains("the archive broke off"), "{complaint}");
    }

    #[tokio::test]
    async fn containerds_complaint_is_told_and_who_sends_is_not_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let (mut sender, mut receivers) = channel(1);
        let content = archive();
        let feed = async {
            sender.send(&content).await;
            sender.end(vec![]).await;
        };
        let ((), (_, complaint, well)) = tokio::join!(feed, node(directory.path(), "echo no room >&2; exit 3", receivers.pop().unwrap()));
        assert!(!well && complaint == "no room\n", "{complaint}");
    }

    #[tokio::test]
    async fn nobody_left_is_told() {
        let (mut sender, receivers) = channel(2);
        drop(receivers);
        assert!(!sender.send(&archive()).await);
    }
}
