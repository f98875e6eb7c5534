//! What an archive says of the images in it, read on its way.

use std::collections::BTreeMap;
use std::io::{self, Read};

use nestling_core::plan::image_reference::{name_in_nodes, repository};
use serde::Deserialize;

use crate::side_load::Naming;

/// Most bytes of a table of contents.
const TABLE_LIMIT: u64 = 8 << 20;

/// containerd's own annotation of a name in full, and OCI's, which may be a tag only.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// The images of an archive.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Contents {
    /// Names under which the nodes have them afterwards, each with the digest of its configuration where the archive tells that: Docker's id of the image.
    pub images: BTreeMap<String, Option<String>>,
    /// The names beyond those that containerd gives by itself.
    pub names: Vec<Naming>,
}

/// `manifest.json`, of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

/// `index.json`, of an OCI layout.
#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// Reads an archive to its end. What is behind the end of the archive itself is read, too.
///
/// # Errors
/// Those of the input; `InvalidData`, with what is wrong, for what is no archive of images.
pub fn read(from: impl Read) -> io::Result<Contents> {
    let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let (mut saved, mut index, mut layout): (Option<Vec<Saved>>, Option<Index>, bool) = (None, None, false);
    let mut archive = tar::Archive::new(from);
    for entry in archive.entries()? {
        let entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        let table = |entry: &mut dyn Read| -> io::Result<Vec<u8>> {
            let mut text = Vec::new();
            entry.take(TABLE_LIMIT).read_to_end(&mut text)?;
            Ok(text)
        };
        let mut entry = entry;
        match path.as_str() {
            "manifest.json" => saved = Some(serde_json::from_slice(&table(&mut entry)?).map_err(|error| wrong(format!("its manifest.json: {error}")))?),
            "index.json" => index = Some(serde_json::from_slice(&table(&mut entry)?).map_err(|error| wrong(format!("its index.json: {error}")))?),
            "oci-layout" => layout = true,
            _ => {}
        }
    }
    // Padding.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    let saved = saved.unwrap_or_default();
    let contents = match index.filter(|_| layout) {
        Some(index) => of_layout(&index, &saved),
        None if saved.is_empty() => return Err(wrong("it has neither a manifest.json nor an index.json beside an oci-layout".to_owned())),
        None => of_docker(&saved),
    };
    if contents.images.is_empty() {
        return Err(wrong("no image in it has a name".to_owned()));
    }
    Ok(contents)
}

/// As `docker save` has written it. containerd gives the names in full.
fn of_docker(saved: &[Saved]) -> Contents {
    Contents { images: ids(saved), names: vec![] }
}

/// containerd takes the names as they are written, which may not be in full; and of images that keep their digest on the way, the name with the digest is one more.
fn of_layout(index: &Index, saved: &[Saved]) -> Contents {
    let mut contents = Contents::default();
    let ids = ids(saved);
    for Descriptor { digest, annotations } in &index.manifests {
        let written = NAMES.iter().find_map(|key| annotations.get(*key)).filter(|name| name.contains(['/', ':', '@']));
        let Some(written) = written else { continue };
        let name = name_in_nodes(written);
        if name != *written {
            contents.names.push(Naming { from: written.clone(), to: name.clone(), keep: false });
        }
        let pinned = format!("{}@{digest}", repository(&name));
        if pinned != name {
            contents.names.push(Naming { from: name.clone(), to: pinned, keep: true });
        }
        contents.images.insert(name.clone(), ids.get(&name).cloned().flatten());
    }
    contents
}

fn ids(saved: &[Saved]) -> BTreeMap<String, Option<String>> {
    let named = |image: &Saved| {
        let id = id(&image.config);
        image.repo_tags.iter().flatten().map(|name| (name_in_nodes(name), id.clone())).collect::<Vec<_>>()
    };
    saved.iter().flat_map(named).collect()
}

/// `blobs/sha256/<digest>` or `<digest>.json`.
fn id(config: &str) -> Option<String> {
    let name = config.rsplit('/').next()?.trim_end_matches(".json");
    (name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| format!("sha256:{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn archive(files: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn what_docker_has_saved() {
        let id = "a".repeat(64);
        let manifest = json!([
            {"Config": format!("{id}.json"), "RepoTags": ["app:1", "registry.example/app:2"], "Layers": []},
            {"Config": "odd", "RepoTags": null, "Layers": []},
        ]);
        let contents = read(archive(&[("layer", "x"), ("manifest.json", &manifest.to_string())]).as_slice()).unwrap();
        let id = Some(format!("sha256:{id}"));
        assert_eq!(contents.images, [("docker.io/library/app:1".to_owned(), id.clone()), ("registry.example/app:2".to_owned(), id)].into());
        assert_eq!(contents.names, []);
    }

    #[test]
    fn a_layout_for_several_platforms() {
        let index = json!({"schemaVersion": 2, "manifests": [
            {"digest": "sha256:aa", "annotations": {"org.opencontainers.image.ref.name": "1", "io.containerd.image.name": "docker.io/library/app:1"}},
            {"digest": "sha256:bb", "annotations": {"org.opencontainers.image.ref.name": "team/app:2"}},
            {"digest": "sha256:cc", "annotations": {"org.opencontainers.image.ref.name": "latest"}},
            {"digest": "sha256:dd"},
        ]});
        let contents = read(archive(&[("./oci-layout", "{}"), ("./index.json", &index.to_string())]).as_slice()).unwrap();
        assert_eq!(contents.images.keys().collect::<Vec<_>>(), ["docker.io/library/app:1", "docker.io/team/app:2"]);
        let naming = |from: &str, to: &str, keep| Naming { from: from.into(), to: to.into(), keep };
        let expected = [
            naming("docker.io/library/app:1", "docker.io/library/app@sha256:aa", true),
            naming("team/app:2", "docker.io/team/app:2", false),
            naming("docker.io/team/app:2", "docker.io/team/app@sha256:bb", true),
        ];
        assert_eq!(contents.names, expected);
    }

    #[test]
    fn what_newer_dockers_save_is_both() {
        let id = "b".repeat(64);
        let index = json!({"manifests": [{"digest": "sha256:aa", "annotations": {"io.containerd.image.name": "docker.io/library/app:1"}}]}).to_string();
        let manifest = json!([{"Config": format!("blobs/sha256/{id}"), "RepoTags": ["app:1"]}]).to_string();
        let contents = read(archive(&[("index.json", &index), ("manifest.json", &manifest), ("oci-layout", "{}")]).as_slice()).unwrap();
        assert_eq!(contents.images, [("docker.io/library/app:1".to_owned(), Some(format!("sha256:{id}")))].into());
    }

    #[test]
    fn what_is_no_archive_of_images_is_refused() {
        let unnamed = json!([{"Config": "a", "RepoTags": []}]).to_string();
        for (bytes, why) in [
            (archive(&[("a", "b")]), "neither a manifest.json"),
            (archive(&[("index.json", "{}")]), "neither a manifest.json"),
            (archive(&[("manifest.json", "nonsense")]), "manifest.json"),
            (archive(&[("manifest.json", &unnamed)]), "no image in it has a name"),
            (archive(&[("oci-layout", "{}"), ("index.json", r#"{"manifests": []}"#)]), "no image in it has a name"),
            (b"no archive at all, but long enough for a header of one".repeat(20), ""),
        ] {
            let error = read(bytes.as_slice()).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let whole = archive(&[("manifest.json", &unnamed), ("layer", &"x".repeat(5000))]);
        assert!(read(&whole[..whole.len() - 4000]).is_err(), "an archive that breaks off");
    }
}
