//! JSON from files that nobody vouches for.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::path::Path;

use kinglet_tensor::{Error, Result};
use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};

/// The largest JSON file that is read: config.json and shard indexes are far smaller.
const MAX_JSON: u64 = 100_000_000;

/// Reads a whole JSON file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = read_text(path)?;
    serde_json::from_str(&text).map_err(|e| Error::invalid(format!("{}: {e}", path.display())))
}

/// Reads a text file of bounded size.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let cannot = |e| Error::io(format!("{}: cannot read it", path.display()), e);
    if !std::fs::metadata(path).map_err(cannot)?.is_file() {
        return Err(Error::invalid(format!("{}: not a regular file", path.display())));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|f| f.take(MAX_JSON + 1).read_to_end(&mut bytes)).map_err(cannot)?;
    if bytes.len() as u64 > MAX_JSON {
        return Err(Error::invalid(format!("{}: more than {MAX_JSON} bytes", path.display())));
    }
    String::from_utf8(bytes).map_err(|_| Error::invalid(format!("{}: not UTF-8", path.display())))
}

/// A JSON object in the order of its text, whose keys are all different. (serde_json keeps the last
/// of two equal keys, so two readers may see two different files.)
pub(crate) struct UniqueMap<V>(pub Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueMapVisitor(PhantomData))
    }
}

struct UniqueMapVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for UniqueMapVisitor<V> {
    type Value = UniqueMap<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut pairs, mut seen) = (Vec::new(), HashSet::new());
        while let Some((key, value)) = map.next_entry::<String, V>()? {
            if !seen.insert(key.clone()) {
                return Err(serde::de::Error::custom(format!("the key {key:?} appears twice")));
            }
            pairs.push((key, value));
        }
        Ok(UniqueMap(pairs))
    }
}
