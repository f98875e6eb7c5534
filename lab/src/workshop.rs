//! Where one part is being made: what it is made from, and where it goes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::go;
use crate::key::SHORT;
use crate::layer::Layer;
use crate::part::Part;

/// The surroundings of one build.
pub struct Workshop<'a> {
    /// The Go modules of the repository.
    pub modules: &'a Path,
    /// The directory that becomes the part.
    pub out: &'a Path,
    /// The finished parts.
    pub parts: &'a BTreeMap<Part, PathBuf>,
    /// The key of the part that is being made.
    pub key: &'a str,
    /// The cache, for what lives beside the parts.
    pub cache: &'a Cache,
    /// Whether images are pulled rather than built.
    pub pulling: bool,
}

impl Workshop<'_> {
    /// The directory of a finished part.
    pub fn part(&self, part: Part) -> Result<&Path> {
        self.parts.get(&part).map(PathBuf::as_path).with_context(|| format!("{} is not built", part.name()))
    }

    /// A program of a finished part.
    pub fn program(&self, part: Part, name: &str) -> Result<PathBuf> {
        Ok(self.part(part)?.join("bin").join(name))
    }

    /// The name of a finished part that is an image.
    pub fn image(&self, part: Part) -> Result<String> {
        let key = self.part(part)?.file_name().and_then(|name| name.to_str()).and_then(|name| name.rsplit('-').next());
        Ok(image_reference(part.image().with_context(|| format!("{} is no image", part.name()))?, key.context("a part without a key")?))
    }

    /// A Debian root as an image layer.
    pub fn root(&self, part: Part) -> Result<Layer> {
        Layer::from_tar(self.part(part)?.join("root.tar"))
    }

    /// The sources of the kind module.
    pub fn kind_sources(&self) -> Result<PathBuf> {
        go::module_directory(self.modules, "kind", "sigs.k8s.io/kind")
    }
}

/// The name and tag of a part's image.
pub fn image_reference(image: &str, key: &str) -> String {
    format!("{image}:{}", &key[..SHORT.min(key.len())])
}
