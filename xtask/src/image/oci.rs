//! The archive of an image: blobs named by their digests, and what refers to them. `ctr image import`, `docker load`,
//! `podman load` and `skopeo` read it.
//!
//! Sources: OCI image specification 1.0 (image-layout.md, manifest.md, config.md); Docker's `manifest.json` beside it
//! (moby, image/spec/spec.md).

use std::{fmt, io::Write as _};

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    Arch,
    dockerfile::Run,
    tree::{FILE_MODE, Node, TIME, Tree},
};

/// [`TIME`] as the specification writes it.
const CREATED: &str = "1970-01-01T00:00:00Z";
const _: () = assert!(TIME == 0, "CREATED says the same");

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// How an image is called, as containerd keeps it: with the registry, even where it never was in one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// As it was given, and as manifests have it.
    short: String,
}

impl Reference {
    /// What container runtimes add to a name without a registry (`distribution/reference`, normalize.go).
    const REGISTRY: &str = "docker.io";
    const FOLDER: &str = "library";

    /// Reads `[REGISTRY/]NAME:TAG`.
    ///
    /// # Errors
    /// When there is no tag, or a character that a reference cannot have.
    pub fn parse(text: &str) -> Result<Self> {
        let name_and_tag = text
            .rsplit_once(':')
            .filter(|(name, tag)| !name.is_empty() && !tag.is_empty() && !tag.contains('/'));
        ensure!(
            name_and_tag.is_some(),
            "--tag {text} has no tag: give a name like flannel-agent:0.1.0"
        );
        let allowed = |c: char| c.is_ascii_alphanumeric() || "./:_-".contains(c);
        ensure!(
            text.chars().all(allowed) && !text.starts_with(['/', '.', ':', '-']),
            "--tag {text} is no image's name: it has letters, digits and ./:_- like \
             registry.example:5000/flannel-agent:0.1.0"
        );
        Ok(Self {
            short: text.to_owned(),
        })
    }

    /// With the registry.
    pub fn full(&self) -> String {
        let Self { short } = self;
        let (registry, folder) = (Self::REGISTRY, Self::FOLDER);
        match short.split_once('/') {
            None => format!("{registry}/{folder}/{short}"),
            Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => short.clone(),
            Some(_) => format!("{registry}/{short}"),
        }
    }

    /// What is behind the last colon.
    fn tag(&self) -> &str {
        self.short.rsplit(':').next().unwrap_or_default()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short)
    }
}

/// A layer, and what made it.
pub struct Layer<'a> {
    /// Its files.
    pub tree: &'a Tree,
    /// For people: `docker history` shows it.
    pub purpose: &'a str,
}

/// An archive, and the digest that the image is known by.
pub struct Archive {
    /// The archive.
    pub bytes: Vec<u8>,
    /// Digest of the manifest.
    pub digest: String,
}

/// Makes the archive.
pub fn archive(
    reference: &Reference,
    arch: Arch,
    run: &Run,
    layers: &[Layer<'_>],
) -> Result<Archive> {
    let mut blobs = Blobs::default();
    let (mut diff_ids, mut descriptors, mut history) = (Vec::new(), Vec::new(), Vec::new());
    for layer in layers {
        let tar = layer.tree.layer()?;
        diff_ids.push(digest(&tar));
        descriptors.push(blobs.add(LAYER_TYPE, compressed(&tar)?)?);
        history.push(json!({"created": CREATED, "created_by": layer.purpose}));
    }
    let mut config = json!({
        "created": CREATED,
        "architecture": arch.oci(),
        "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": history,
    });
    let mut platform = json!({"architecture": arch.oci(), "os": "linux"});
    if let Some(variant) = arch.variant() {
        config["variant"] = variant.into();
        platform["variant"] = variant.into();
    }
    let config = blobs.add(CONFIG_TYPE, serde_json::to_vec(&config)?)?;
    let docker = json!([{
        "Config": path_of(&config),
        "RepoTags": [reference.short],
        "Layers": descriptors.iter().map(path_of).collect::<Vec<_>>(),
    }]);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": config,
        "layers": descriptors,
    });
    let mut manifest = blobs.add(MANIFEST_TYPE, serde_json::to_vec(&manifest)?)?;
    let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
    manifest["platform"] = platform;
    manifest["annotations"] = json!({
        "io.containerd.image.name": reference.full(),
        "org.opencontainers.image.ref.name": reference.tag(),
    });
    let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [manifest]});
    let mut tree = blobs.0;
    for (path, content) in [
        ("oci-layout", json!({"imageLayoutVersion": "1.0.0"})),
        ("index.json", index),
        ("manifest.json", docker),
    ] {
        tree.add(path, Node::File(FILE_MODE, serde_json::to_vec(&content)?))?;
    }
    Ok(Archive {
        bytes: tree.layer()?,
        digest,
    })
}

/// Content by its digest.
#[derive(Default)]
struct Blobs(Tree);

impl Blobs {
    /// Adds a blob; gives its descriptor.
    fn add(&mut self, media_type: &str, content: Vec<u8>) -> Result<Value> {
        let descriptor = json!({
            "mediaType": media_type,
            "digest": digest(&content),
            "size": content.len(),
        });
        self.0
            .add(path_of(&descriptor), Node::File(FILE_MODE, content))?;
        Ok(descriptor)
    }
}

/// Where a blob is in the archive.
fn path_of(descriptor: &Value) -> String {
    let digest = descriptor["digest"].as_str().unwrap_or_default();
    format!("blobs/{}", digest.replace(':', "/"))
}

fn digest(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// gzip without name and time.
fn compressed(content: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::best());
    encoder
        .write_all(content)
        .and_then(|()| encoder.finish())
        .context("cannot compress a layer")
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read as _};

    use super::*;

    fn files(archive: &Archive) -> BTreeMap<String, Vec<u8>> {
        let mut reader = tar::Archive::new(archive.bytes.as_slice());
        let mut files = BTreeMap::new();
        for entry in reader.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(path, content);
        }
        files
    }

    fn example() -> Archive {
        let mut tree = Tree::default();
        tree.add("x", Node::File(0o755, b"y".into())).unwrap();
        let run = Run {
            entrypoint: vec!["/x".into()],
            ..Run::default()
        };
        let layer = Layer {
            tree: &tree,
            purpose: "test",
        };
        let reference = Reference::parse("flannel-agent:1").unwrap();
        archive(&reference, Arch::Arm64, &run, &[layer]).unwrap()
    }

    #[test]
    fn every_blob_has_the_digest_and_size_that_it_is_named_by() {
        let archive = example();
        let files = files(&archive);
        let read = |path: &str| -> Value { serde_json::from_slice(&files[path]).unwrap() };
        let follow = |descriptor: &Value| {
            let content = &files[&path_of(descriptor)];
            assert_eq!(descriptor["digest"], digest(content));
            assert_eq!(descriptor["size"], content.len());
            content.clone()
        };
        let index = read("index.json");
        let descriptor = &index["manifests"][0];
        assert_eq!(descriptor["digest"], archive.digest);
        assert_eq!(descriptor["platform"]["variant"], "v8");
        assert_eq!(
            descriptor["annotations"]["io.containerd.image.name"],
            "docker.io/library/flannel-agent:1"
        );
        let manifest: Value = serde_json::from_slice(&follow(descriptor)).unwrap();
        let config: Value = serde_json::from_slice(&follow(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"], json!(["/x"]));
        let mut layer = Vec::new();
        flate2::read::GzDecoder::new(follow(&manifest["layers"][0]).as_slice())
            .read_to_end(&mut layer)
            .unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&layer)]));
        let docker = read("manifest.json");
        assert_eq!(docker[0]["RepoTags"], json!(["flannel-agent:1"]));
        assert_eq!(docker[0]["Config"], path_of(&manifest["config"]));
    }

    #[test]
    fn equal_files_make_equal_archives() {
        let (one, other) = (example(), example());
        assert!(one.bytes == other.bytes && one.digest == other.digest);
    }

    #[test]
    fn references_are_completed_as_runtimes_do_it() {
        for (short, full) in [
            (
                "flannel-agent:0.1.0",
                Some("docker.io/library/flannel-agent:0.1.0"),
            ),
            ("me/flannel-agent:1", Some("docker.io/me/flannel-agent:1")),
            ("localhost/a:1", Some("localhost/a:1")),
            ("r.example:5000/a/b:1", Some("r.example:5000/a/b:1")),
            ("flannel-agent", None),
            ("r.example:5000/a", None),
            ("a b:1", None),
            (":1", None),
            ("a:", None),
        ] {
            let parsed = Reference::parse(short)
                .ok()
                .map(|reference| reference.full());
            assert_eq!(parsed.as_deref(), full, "{short}");
        }
    }
}
