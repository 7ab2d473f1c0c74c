//! Which modules an adapter acts on: PEFT's rules.

use crate::config::LoraConfig;
use kinglet_tensor::{Error, Result};
use regex_lite::Regex;
use serde_json::{Value, json};
use std::fmt;

/// A choice of modules.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Targets {
    /// Every linear layer but the output projection.
    AllLinear,
    /// Modules with one of these names, or whose name ends in a dot and one of them.
    Names(Vec<String>),
    /// Modules whose whole name this matches.
    Regex(String),
}

impl Targets {
    /// What PEFT takes for llama, mistral and qwen when nothing is said.
    #[must_use]
    pub fn defaults() -> Self {
        Targets::Names(vec!["q_proj".into(), "v_proj".into()])
    }

    /// The command line's form: `all-linear`, names separated by commas, or a regular expression.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let is_name = |c: char| c.is_alphanumeric() || "_-.,".contains(c);
        if text.eq_ignore_ascii_case(ALL_LINEAR) {
            Targets::AllLinear
        } else if text.chars().all(is_name) && !text.contains(".,") && !text.ends_with('.') {
            Targets::Names(text.split(',').filter(|n| !n.is_empty()).map(String::from).collect())
        } else {
            Targets::Regex(text.into())
        }
    }

    /// Whether both choose the same linear layers of every model that kinglet knows; two regular expressions do when they
    /// are equal.
    #[must_use]
    pub fn means_same_as(&self, other: &Self) -> bool {
        match (self.sorted(), other.sorted()) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => self == other,
        }
    }

    /// The names, in order and once each.
    fn sorted(&self) -> Option<Vec<&str>> {
        let mut names: Vec<&str> = match self {
            Targets::AllLinear => LINEAR.to_vec(),
            Targets::Names(names) => names.iter().map(String::as_str).collect(),
            Targets::Regex(_) => return None,
        };
        names.sort_unstable();
        names.dedup();
        Some(names)
    }

    pub(crate) fn from_json(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) if text.eq_ignore_ascii_case(ALL_LINEAR) => Some(Targets::AllLinear),
            Value::String(text) => Some(Targets::Regex(text.clone())),
            Value::Array(list) => {
                list.iter().map(|v| v.as_str().map(String::from)).collect::<Option<_>>().map(Targets::Names)
            }
            _ => None,
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        match self {
            Targets::AllLinear => json!(ALL_LINEAR),
            Targets::Names(names) => json!(names),
            Targets::Regex(pattern) => json!(pattern),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Targets::Names(names) if names.is_empty())
    }
}

const ALL_LINEAR: &str = "all-linear";
/// What [`Targets::AllLinear`] means in every model that kinglet knows.
const LINEAR: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

impl fmt::Display for Targets {
    /// The command line's form: see [`Targets::parse`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Targets::AllLinear => f.write_str(ALL_LINEAR),
            Targets::Names(names) => f.write_str(&names.join(",")),
            Targets::Regex(pattern) => f.write_str(pattern),
        }
    }
}

/// A [`LoraConfig`]'s rules with every pattern compiled.
pub(crate) struct Matcher<'a> {
    config: &'a LoraConfig,
    target: Choice<'a>,
    exclude: Option<Choice<'a>>,
    saved: Vec<Regex>,
    layer: Vec<Regex>,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

enum Choice<'a> {
    AllLinear,
    Names(&'a [String]),
    Regex(Regex),
}

impl<'a> Choice<'a> {
    fn new(targets: &'a Targets, key: &str) -> Result<Self> {
        Ok(match targets {
            Targets::AllLinear => Choice::AllLinear,
            Targets::Names(names) => Choice::Names(names),
            // Python's re.fullmatch.
            Targets::Regex(pattern) => Choice::Regex(compile(key, pattern, &format!(r"\A(?:{pattern})\z"))?),
        })
    }
}

impl<'a> Matcher<'a> {
    pub(crate) fn new(config: &'a LoraConfig) -> Result<Self> {
        let ending = |key: &str, name: &str| compile(key, name, &format!(r"\A(?:.*\.)?(?:{name})\z"));
        let layer_patterns = match config.layers_pattern.as_slice() {
            // The first numbered segment: a later one may be the index of an expert.
            [] => vec![compile("layers_pattern", "", r"\A.*?\.[^.]*\.(\d+)\.")?],
            patterns => patterns
                .iter()
                .map(|p| compile("layers_pattern", p, &format!(r"\A(?:.*?\.)??(?:{p})\.(\d+)\.")))
                .collect::<Result<_>>()?,
        };
        let saved = config.modules_to_save.iter();
        let (mut ranks, mut alphas) = (config.rank_pattern.clone(), config.alpha_pattern.clone());
        ranks.sort_by(|a, b| a.0.cmp(&b.0));
        alphas.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(Matcher {
            config,
            target: Choice::new(&config.target_modules, "target_modules")?,
            exclude: config.exclude_modules.as_ref().map(|t| Choice::new(t, "exclude_modules")).transpose()?,
            saved: saved
                .map(|m| compile("modules_to_save", m, &format!(r"\A(?:|.*\.)(?:{m})(?:\z|\.)")))
                .collect::<Result<_>>()?,
            layer: layer_patterns,
            ranks: ranks.iter().map(|(k, r)| Ok((ending("rank_pattern", k)?, *r))).collect::<Result<_>>()?,
            alphas: alphas.iter().map(|(k, a)| Ok((ending("alpha_pattern", k)?, *a))).collect::<Result<_>>()?,
        })
    }

    /// Whether the module called `name` gets an adapter; `in_all` says whether `all-linear` means it.
    pub(crate) fn is_target(&self, name: &str, in_all: bool) -> bool {
        let excluded = match &self.exclude {
            None => false,
            Some(Choice::AllLinear) => in_all,
            Some(Choice::Names(names)) => names.iter().any(|n| is_or_ends_in(name, n)),
            Some(Choice::Regex(regex)) => regex.is_match(name),
        };
        if excluded || self.saved.iter().any(|m| m.is_match(name)) {
            return false;
        }
        match &self.target {
            Choice::AllLinear => in_all,
            Choice::Regex(regex) => regex.is_match(name),
            Choice::Names(names) if names.iter().any(|n| n == name) => true,
            Choice::Names(names) => names.iter().any(|n| is_or_ends_in(name, n)) && self.is_layer_chosen(name),
        }
    }

    /// Whether `layers_to_transform` leaves the module in. It acts only on names that are the end of a module's name.
    fn is_layer_chosen(&self, name: &str) -> bool {
        let Some(chosen) = &self.config.layers_to_transform else { return true };
        let found = self.layer.iter().find_map(|pattern| pattern.captures(name));
        found.and_then(|c| c.get(1)?.as_str().parse().ok()).is_some_and(|index: usize| chosen.contains(&index))
    }

    /// Whether the module called `name`, or one that it is inside of, is trained in full. PEFT compares the mere end
    /// of a name here: `norm` means every `input_layernorm` too.
    pub(crate) fn is_saved(&self, name: &str) -> bool {
        let ancestors = name.match_indices('.').map(|(at, _)| &name[..at]).chain([name]);
        ancestors.into_iter().any(|a| self.config.modules_to_save.iter().any(|m| a.ends_with(m.as_str())))
    }

    /// The rank of the module called `name`.
    pub(crate) fn rank(&self, name: &str) -> usize {
        self.ranks.iter().find(|(key, _)| key.is_match(name)).map_or(self.config.r, |(_, r)| *r)
    }

    /// The alpha of the module called `name`.
    pub(crate) fn alpha(&self, name: &str) -> f64 {
        self.alphas.iter().find(|(key, _)| key.is_match(name)).map_or(self.config.lora_alpha, |(_, alpha)| *alpha)
    }

    /// Names of `target_modules` and `modules_to_save` that mean none of `modules`.
    pub(crate) fn unmatched(&self, modules: &[&str]) -> Vec<String> {
        let targets: &[String] = match &self.target {
            Choice::Names(names) => names,
            _ => &[],
        };
        let targets = targets.iter().filter(|n| !modules.iter().any(|m| is_or_ends_in(m, n)));
        let inside = |name: &str, end: &str| {
            name.match_indices('.').map(|(at, _)| &name[..at]).chain([name]).any(|a| a.ends_with(end))
        };
        let saved = self.config.modules_to_save.iter().filter(|s| !modules.iter().any(|m| inside(m, s)));
        targets.chain(saved).cloned().collect()
    }
}

/// Whether `name` is `end`, or ends in a dot and `end`.
fn is_or_ends_in(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

fn compile(key: &str, written: &str, pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|e| {
        let reason = e.to_string();
        let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_string();
        Error::invalid(format!("{key} {written:?} is no regular expression that kinglet reads: {reason}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q0: &str = "model.layers.0.self_attn.q_proj";
    const Q1: &str = "model.layers.1.self_attn.q_proj";
    const HEAD: &str = "lm_head";

    fn names(list: &[&str]) -> Targets {
        Targets::Names(list.iter().map(|s| s.to_string()).collect())
    }

    /// Which of (q0, q1, head) are targets.
    fn matched(config: &LoraConfig) -> [bool; 3] {
        let matcher = Matcher::new(config).unwrap();
        [matcher.is_target(Q0, true), matcher.is_target(Q1, true), matcher.is_target(HEAD, false)]
    }

    fn with(target_modules: Targets) -> LoraConfig {
        LoraConfig { target_modules, ..LoraConfig::default() }
    }

    #[test]
    fn names_match_whole_segments_and_patterns_whole_names() {
        assert_eq!(matched(&with(Targets::AllLinear)), [true, true, false]);
        assert_eq!(matched(&with(names(&["q_proj"]))), [true, true, false]);
        assert_eq!(matched(&with(names(&["proj", "_proj", "0"]))), [false; 3]);
        assert_eq!(matched(&with(names(&[Q1, HEAD]))), [false, true, true]);
        assert_eq!(matched(&with(Targets::Regex("q_proj".into()))), [false; 3]);
        assert_eq!(matched(&with(Targets::Regex(r".*q_proj|lm_head".into()))), [true, true, true]);
        assert_eq!(matched(&with(Targets::Regex(r".*\.0\..*".into()))), [true, false, false]);
    }

    #[test]
    fn names_mean_the_same_in_any_order_and_all_linear_is_all_of_them() {
        let same = |a: &str, b: &str| Targets::parse(a).means_same_as(&Targets::parse(b));
        assert!(same("q_proj,v_proj", "v_proj,q_proj"));
        assert!(same("all-linear", "up_proj,down_proj,gate_proj,q_proj,k_proj,v_proj,o_proj"));
        assert!(!same("all-linear", "q_proj,v_proj") && !same("q_proj", "v_proj"));
        assert!(same(r".*\.q_proj", r".*\.q_proj") && !same(r".*\.q_proj", "q_proj"));
        for text in ["all-linear", "q_proj,v_proj", r".*\.q_proj"] {
            assert_eq!(Targets::parse(text).to_string(), text);
        }
    }

    #[test]
    fn exclusions_and_modules_to_save_win() {
        let base = with(Targets::AllLinear);
        let excluded = LoraConfig { exclude_modules: Some(names(&["0.self_attn.q_proj"])), ..base.clone() };
        assert_eq!(matched(&excluded), [false, true, false]);
        let excluded = LoraConfig { exclude_modules: Some(Targets::Regex(".*1.*".into())), ..base.clone() };
        assert_eq!(matched(&excluded), [true, false, false]);
        let saved = LoraConfig { modules_to_save: vec!["layers.0".into()], ..base };
        assert_eq!(matched(&saved), [false, true, false]);
    }

    #[test]
    fn layers_are_chosen_for_names_only() {
        let base = LoraConfig { layers_to_transform: Some(vec![1]), ..with(names(&["q_proj"])) };
        assert_eq!(matched(&base), [false, true, false]);
        assert_eq!(matched(&LoraConfig { target_modules: names(&[Q0]), ..base.clone() }), [true, false, false]);
        let pattern = |p: &str| LoraConfig { layers_pattern: vec![p.into()], ..base.clone() };
        assert_eq!(matched(&pattern("layers")), [false, true, false]);
        assert_eq!(matched(&pattern("blocks")), [false; 3]);
    }

    #[test]
    fn the_first_pattern_that_fits_gives_rank_and_alpha() {
        let config = LoraConfig {
            rank_pattern: vec![("q_proj".into(), 5), ("layers.1.self_attn.q_proj".into(), 3)],
            alpha_pattern: vec![(r".*\.0\..*".into(), 7.0), ("proj".into(), 9.0)],
            ..LoraConfig::default()
        };
        let matcher = Matcher::new(&config).unwrap();
        assert_eq!([Q0, Q1, HEAD].map(|m| matcher.rank(m)), [5, 3, 16]);
        assert_eq!([Q0, Q1, HEAD].map(|m| matcher.alpha(m)), [7.0, 32.0, 32.0]);
    }

    #[test]
    fn modules_to_save_match_the_mere_end_of_a_name() {
        let config = LoraConfig { modules_to_save: vec!["norm".into(), "mlp".into()], ..LoraConfig::default() };
        let matcher = Matcher::new(&config).unwrap();
        for name in ["model.norm", "model.layers.0.input_layernorm", "model.layers.0.mlp.up_proj"] {
            assert!(matcher.is_saved(name), "{name}");
        }
        assert!(!matcher.is_saved(Q0) && !matcher.is_saved(HEAD));
    }

    #[test]
    fn the_command_line_tells_names_from_patterns() {
        assert_eq!(Targets::parse("All-Linear"), Targets::AllLinear);
        assert_eq!(Targets::parse("q_proj,v_proj"), names(&["q_proj", "v_proj"]));
        assert_eq!(Targets::parse("layers.0.mlp.up_proj"), names(&["layers.0.mlp.up_proj"]));
        assert_eq!(Targets::parse(".*proj"), Targets::Regex(".*proj".into()));
    }

    #[test]
    fn what_is_no_pattern_or_means_nothing_is_named() {
        let bad = with(Targets::Regex("(?=x".into()));
        let error = Matcher::new(&bad).err().unwrap().to_string();
        assert!(error.contains("target_modules") && error.contains("(?=x"), "{error}");
        let config = LoraConfig { modules_to_save: vec!["score".into()], ..with(names(&["q_proj", "c_attn"])) };
        assert_eq!(Matcher::new(&config).unwrap().unmatched(&[Q0, HEAD]), ["c_attn", "score"]);
    }
}
