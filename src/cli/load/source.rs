//! Where images come from: files, standard input, the local Docker.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::Result;
use flate2::bufread::MultiGzDecoder;
use nestling_core::plan::image_reference::name_in_nodes;
use tokio::sync::mpsc;

use super::contents::{self, Contents};
use crate::cli::failure::Failure;

/// Bytes that are read at once.
const PIECE: usize = 256 << 10;

/// Where an archive comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// A file.
    File(String),
    /// Standard input.
    Standard,
    /// The local Docker, which saves these images as one.
    Docker(Vec<String>),
}

impl Source {
    /// What the words of a command line stand for. Nothing is read yet, but what is not there is missed.
    ///
    /// # Errors
    /// Of a word that looks like a file and is none, and of standard input that is named twice.
    pub fn all(words: &[String]) -> Result<Vec<Self>> {
        let (mut sources, mut images) = (Vec::new(), Vec::new());
        for word in words {
            if word == "-" {
                if sources.contains(&Self::Standard) {
                    return Err(Failure::new("standard input is named twice", "Name it once: it is read to its end.").into());
                }
                sources.push(Self::Standard);
            } else if Path::new(word).is_file() {
                sources.push(Self::File(word.clone()));
            } else if looks_like_a_file(word) {
                return Err(Failure::new(format!("there is no file {word}"), "Correct its path, or name an image of the local Docker.").into());
            } else {
                images.push(word.clone());
            }
        }
        if !images.is_empty() {
            sources.push(Self::Docker(images));
        }
        Ok(sources)
    }

    /// For people.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.clone(),
            Self::Standard => "standard input".to_owned(),
            Self::Docker(images) => images.join(", "),
        }
    }

    /// What is in it, as far as that can be told without reading all of it.
    ///
    /// # Errors
    /// If the local Docker does not have the images, or there is none.
    pub fn look(&self) -> Result<Option<Contents>> {
        match self {
            Self::Docker(images) => {
                let mut contents = Contents::default();
                for image in images {
                    contents.images.insert(name_in_nodes(image), Some(docker_id(image)?));
                }
                Ok(Some(contents))
            }
            Self::Standard | Self::File(_) => Ok(None),
        }
    }

    /// Reads all of it, in a thread of its own. The pieces come unpacked; the last thing to come is what was in it, or why it is no archive.
    pub fn open(&self) -> mpsc::Receiver<Piece> {
        let (sender, receiver) = mpsc::channel(2);
        let source = self.clone();
        std::thread::spawn(move || {
            let done = source.read(&sender);
            // Nobody may be left who wants to know.
            let _ = sender.blocking_send(Piece::End(done));
        });
        receiver
    }

    fn read(&self, to: &mpsc::Sender<Piece>) -> io::Result<Contents> {
        match self {
            Self::File(path) => read(File::open(path)?, to),
            Self::Standard => read(io::stdin(), to),
            Self::Docker(images) => {
                let mut saving = Saving::start(images)?;
                let contents = read(saving.output()?, to);
                saving.end()?;
                contents
            }
        }
    }
}

/// What comes of a [`Source`].
#[derive(Debug)]
pub enum Piece {
    /// The next bytes.
    Data(Vec<u8>),
    /// There are no more.
    End(io::Result<Contents>),
}

fn looks_like_a_file(word: &str) -> bool {
    let extension = Path::new(word).extension().is_some_and(|extension| ["tar", "tgz", "gz", "zst", "oci"].iter().any(|known| extension == *known));
    extension || word.starts_with(['/', '.', '~'])
}

/// Reads an archive, plain or gzipped.
fn read(from: impl Read, to: &mpsc::Sender<Piece>) -> io::Result<Contents> {
    let mut from = BufReader::with_capacity(PIECE, from);
    let begin = from.fill_buf()?;
    if begin.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Err(io::Error::new(ErrorKind::InvalidData, "it is packed with zstd: unpack it with zstd -dc"));
    }
    if begin.starts_with(&[0x1f, 0x8b]) { unpacked(MultiGzDecoder::new(from), to) } else { unpacked(from, to) }
}

fn unpacked(from: impl Read, to: &mpsc::Sender<Piece>) -> io::Result<Contents> {
    contents::read(BufReader::with_capacity(PIECE, Tee { from, to }))
}

/// Sends on what is read.
struct Tee<'a, R> {
    from: R,
    to: &'a mpsc::Sender<Piece>,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        if read > 0 && self.to.blocking_send(Piece::Data(buffer[..read].to_vec())).is_err() {
            return Err(ErrorKind::BrokenPipe.into());
        }
        Ok(read)
    }
}

/// Docker's own program knows where its daemon is (contexts, `DOCKER_HOST`, its login).
fn docker(arguments: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The id that the local Docker has for an image.
fn docker_id(image: &str) -> Result<String> {
    let output = docker(&["image", "inspect", "--format", "{{.Id}}", image]).output().map_err(|error| no_docker(image, &error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let next = if said.to_lowercase().contains("no such image") {
        format!("Build or pull it first: `docker pull {image}`; `docker image ls` lists what there is.")
    } else {
        format!("Start Docker, or save the image where it is and pipe it: `docker save {image} | {}`.", super::super::failure::command("load NAME -"))
    };
    Err(Failure::new(format!("the local Docker does not give {image}: {said}"), next).into())
}

fn no_docker(image: &str, error: &io::Error) -> Failure {
    let why =
        if error.kind() == ErrorKind::NotFound { "there is no docker program on this machine".to_owned() } else { format!("docker cannot be run: {error}") };
    let next = format!("Name an archive instead, or `-` for standard input; where the image is: `docker save {image} > image.tar`.");
    Failure::new(format!("{image} is no file, and {why}"), next)
}

/// `docker save` at work.
struct Saving(Child);

impl Saving {
    fn start(images: &[String]) -> io::Result<Self> {
        let arguments: Vec<&str> = ["image", "save"].into_iter().chain(images.iter().map(String::as_str)).collect();
        // What it complains of goes to the user's terminal: nobody reads it while the archive is read.
        Ok(Self(docker(&arguments).stderr(Stdio::inherit()).spawn()?))
    }

    fn output(&mut self) -> io::Result<ChildStdout> {
        self.0.stdout.take().ok_or_else(|| io::Error::other("docker save has no output"))
    }

    fn end(mut self) -> io::Result<()> {
        let status = self.0.wait()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("docker save has ended with {status}"))) }
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        // One that has ended is none any more.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn archive() -> Vec<u8> {
        let manifest = br#"[{"Config": "c", "RepoTags": ["app:1"]}]"#;
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in [("layer", &vec![7; 700_000][..]), ("manifest.json", manifest)] {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, content).unwrap();
        }
        let mut bytes = builder.into_inner().unwrap();
        bytes.extend([0; 9_000]);
        bytes
    }

    fn all_of(source: &Source) -> (Vec<u8>, io::Result<Contents>) {
        let mut pieces = source.open();
        let mut bytes = Vec::new();
        loop {
            match pieces.blocking_recv().unwrap() {
                Piece::Data(piece) => bytes.extend(piece),
                Piece::End(done) => return (bytes, done),
            }
        }
    }

    #[test]
    fn every_byte_comes_unpacked_with_what_is_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(path("plain.tar"), archive()).unwrap();
        let mut packed = flate2::write::GzEncoder::new(File::create(path("packed.tgz")).unwrap(), flate2::Compression::fast());
        packed.write_all(&archive()).unwrap();
        packed.finish().unwrap();
        std::fs::write(path("zstd"), [0x28, 0xb5, 0x2f, 0xfd, 0]).unwrap();
        for name in ["plain.tar", "packed.tgz"] {
            let (bytes, contents) = all_of(&Source::File(path(name)));
            assert!(bytes == archive(), "{name}");
            assert!(contents.unwrap().images.contains_key("docker.io/library/app:1"));
        }
        assert!(all_of(&Source::File(path("zstd"))).1.unwrap_err().to_string().contains("zstd -dc"));
        assert_eq!(all_of(&Source::File(path("none"))).1.unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn words_are_files_or_images() {
        let words = |words: &[&str]| Source::all(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>());
        let docker = |images: &[&str]| Source::Docker(images.iter().map(|&image| image.to_owned()).collect());
        assert_eq!(words(&["app:1", "-", "team/app"]).unwrap(), [Source::Standard, docker(&["app:1", "team/app"])]);
        assert_eq!(words(&["Cargo.toml"]).unwrap(), [Source::File("Cargo.toml".to_owned())]);
        for (named, why) in [(&["./app.tar"][..], "there is no file ./app.tar"), (&["app.tgz"], "no file"), (&["-", "-"], "twice")] {
            assert!(words(named).unwrap_err().to_string().contains(why), "{named:?}");
        }
    }
}
