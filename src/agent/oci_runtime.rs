//! What runs Docker's containers, and what stands before it where the host withholds capabilities: `oci-runtime`, this program under another name.
//!
//! `docker run --privileged` asks for every capability of the kernel, and crun fails when one of them is not in the bounding set
//! (`capset: Operation not permitted`). This takes what cannot be had out of the specification and then becomes the runtime. It only
//! ever removes privileges.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde_json::Value;

use super::capabilities::Capabilities;

/// The name under which this program is the runtime. Docker speaks to it in runc's language, so there is no verb.
pub const NAME: &str = "oci-runtime";

/// Names the runtime behind it ([`choice`]).
pub const RUNTIME_VARIABLE: &str = "NESTLING_RUNTIME";

/// What runs containers. kind gives some forty commands in each node, and each costs less with crun than with runc (decision 0028). But crun insists on
/// every controller that Docker asks for, also where nothing is asked of it (`controller io is not available`), and runc does not.
pub const fn choice(disks_are_shared: bool) -> &'static str {
    if disks_are_shared { "crun" } else { "runc" }
}

/// Why a specification could not be changed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot read the process's capabilities")]
    Capabilities,
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not JSON: {source}")]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
}

/// The file that describes a process, and what in it is the process.
#[derive(Debug, Eq, PartialEq)]
struct Specification {
    path: PathBuf,
    /// A bundle's `config.json` holds the process among others; the file of `exec` is the process.
    is_bundle: bool,
}

/// Removes what the host cannot grant and becomes the runtime with the same arguments.
///
/// Returns only where that cannot be started; a specification that cannot be changed is left to it as it is, and its
/// error message reaches Docker and so the user.
pub fn run(arguments: &[OsString]) -> ExitCode {
    if let Some(specification) = specification(arguments)
        && let Err(error) = restrict(&specification)
    {
        eprintln!("{NAME}: {error}");
    }
    let runtime = std::env::var_os(RUNTIME_VARIABLE).unwrap_or_else(|| choice(true).into());
    let error = Command::new(&runtime).args(arguments).exec();
    eprintln!("{NAME}: cannot start {}: {error}", runtime.display());
    ExitCode::from(127)
}

/// The specification that the runtime will read, if the verb has one. Options before and behind the verb are the same for both (`crun --help`).
fn specification(arguments: &[OsString]) -> Option<Specification> {
    let verb = arguments.iter().find(|argument| ["create", "run", "exec"].iter().any(|verb| argument == verb))?;
    if verb == "exec" {
        return option(arguments, "--process", "-p").map(|path| Specification { path: path.into(), is_bundle: false });
    }
    let bundle = option(arguments, "--bundle", "-b").map_or_else(|| PathBuf::from("."), PathBuf::from);
    Some(Specification { path: bundle.join("config.json"), is_bundle: true })
}

/// The value of an option, given as `--option value` or `--option=value`.
fn option(arguments: &[OsString], long: &str, short: &str) -> Option<OsString> {
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        for name in [long, short] {
            if argument == name {
                return rest.next().cloned();
            }
            let value = argument.as_bytes().strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="));
            if let Some(value) = value {
                return Some(OsStr::from_bytes(value).to_owned());
            }
        }
    }
    None
}

fn restrict(specification: &Specification) -> Result<(), Error> {
    let held = Capabilities::bounding().ok_or(Error::Capabilities)?;
    let path = &specification.path;
    let text = fs::read(path).map_err(|source| Error::Read { path: path.clone(), source })?;
    let mut document: Value = serde_json::from_slice(&text).map_err(|source| Error::Parse { path: path.clone(), source })?;
    let process = if specification.is_bundle { document.get_mut("process") } else { Some(&mut document) };
    if !process.is_some_and(|process| drop_capabilities(process, held)) {
        return Ok(());
    }
    replace(path, document.to_string().as_bytes()).map_err(|source| Error::Write { path: path.clone(), source })
}

/// Takes out of an OCI process what is not held; tells whether anything was.
fn drop_capabilities(process: &mut Value, held: Capabilities) -> bool {
    let mut changed = false;
    for set in ["bounding", "effective", "inheritable", "permitted", "ambient"] {
        if let Some(names) = process.pointer_mut(&format!("/capabilities/{set}")).and_then(Value::as_array_mut) {
            let before = names.len();
            names.retain(|name| name.as_str().is_none_or(|name| held.holds(name)));
            changed |= names.len() != before;
        }
    }
    changed
}

/// Replaces a file in one step: the runtime must never see half of it.
fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".nestling-{}", std::process::id()));
    let mode = fs::metadata(path)?.permissions().mode();
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    let written = file.write_all(content).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    #[rstest]
    #[case("--root /r --log /l create --bundle /b --pid-file /p id", Some(("/b/config.json", true)))]
    #[case("--root=/r run -b=/b id", Some(("/b/config.json", true)))]
    #[case("create id", Some(("./config.json", true)))]
    #[case("--log-format json exec --process /tmp/p.json --detach id", Some(("/tmp/p.json", false)))]
    #[case("exec -p=/tmp/p.json id", Some(("/tmp/p.json", false)))]
    #[case("exec id sh", None)]
    #[case("start id", None)]
    #[case("features", None)]
    fn arguments_name_the_specification(#[case] line: &str, #[case] expected: Option<(&str, bool)>) {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let expected = expected.map(|(path, is_bundle)| Specification { path: path.into(), is_bundle });
        assert_eq!(specification(&arguments), expected);
    }

    const WITHOUT_SYS_RESOURCE: Capabilities = Capabilities(0x1ff_feff_ffff);

    #[test]
    fn only_what_is_not_held_goes() {
        let mut process = json!({"args": ["sh"], "capabilities": {
            "bounding": ["CAP_CHOWN", "CAP_SYS_RESOURCE"], "effective": ["CAP_SYS_RESOURCE"], "ambient": [], "permitted": ["CAP_NEW"]}});
        assert!(drop_capabilities(&mut process, WITHOUT_SYS_RESOURCE));
        assert_eq!(process, json!({"args": ["sh"], "capabilities": {"bounding": ["CAP_CHOWN"], "effective": [], "ambient": [], "permitted": ["CAP_NEW"]}}));
        assert!(!drop_capabilities(&mut process, WITHOUT_SYS_RESOURCE));
        assert!(!drop_capabilities(&mut json!({"args": []}), WITHOUT_SYS_RESOURCE));
    }

    #[test]
    fn a_file_is_replaced_with_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
