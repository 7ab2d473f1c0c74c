//! The table that `kinglet bench` prints and saves.

use crate::bench::args::Common;
use crate::bench::machine;
use crate::bench::process::check;
use crate::console::{note, out};
use kinglet_models::fs::{Disk, write_file_atomic};
use kinglet_tensor::{Error, Result};
use serde_json::{Map, Value, json};
use std::io::Write;
use std::sync::atomic::AtomicBool;

/// What both sides measured of one job, in one unit.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) job: String,
    pub(crate) unit: &'static str,
    /// kinglet's, one a round.
    pub(crate) ours: Vec<f64>,
    /// Shares of the peak that was measured in the same round; empty where there is none.
    pub(crate) shares: Vec<f64>,
    /// Whether the bytes that a job moves fit into the last cache: then so did those of the peak.
    pub(crate) in_cache: bool,
    /// The others', under the names of their columns, one a round.
    pub(crate) peers: Vec<(&'static str, Vec<f64>)>,
}

/// A whole run.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// op, step or decode.
    pub(crate) bench: &'static str,
    pub(crate) about: Map<String, Value>,
    pub(crate) rows: Vec<Row>,
    /// Peers that did not run, and why; what else a reader must know.
    pub(crate) notes: Vec<String>,
}

/// The middle value; the mean of the middle two.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

impl Row {
    /// A row without figures.
    pub(crate) fn new(job: String, unit: &'static str) -> Self {
        Row { job, unit, ours: Vec::new(), shares: Vec::new(), in_cache: false, peers: Vec::new() }
    }

    /// The median over the rounds of ours over theirs: what drifts within a run falls out of it.
    fn ratio(&self, theirs: &[f64]) -> f64 {
        let ratios: Vec<f64> = self.ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        median(&ratios)
    }

    fn json(&self) -> Value {
        let peer = |(name, values): &(&str, Vec<f64>)| {
            let mut peer = samples(values);
            peer.insert("ratio".into(), number(self.ratio(values)));
            ((*name).to_string(), Value::Object(peer))
        };
        let peers: Map<String, Value> = self.peers.iter().map(peer).collect();
        let share = (!self.shares.is_empty()).then(|| number(median(&self.shares)));
        json!({
            "job": self.job,
            "unit": self.unit,
            "kinglet": samples(&self.ours),
            "share_of_peak": share,
            "in_cache": self.in_cache,
            "peers": peers,
        })
    }
}

/// The median with everything that it is of.
fn samples(values: &[f64]) -> Map<String, Value> {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let all: Vec<Value> = values.iter().map(|&value| number(value)).collect();
    let fields =
        [("median", number(median(values))), ("min", number(least)), ("max", number(most)), ("all", all.into())];
    fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

/// Five digits are more than any clock gives.
fn number(value: f64) -> Value {
    format!("{value:.4e}").parse::<f64>().ok().and_then(serde_json::Number::from_f64).map_or(Value::Null, Value::Number)
}

impl Report {
    pub(crate) fn json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        json!({
            "bench": self.bench,
            "date": machine::date(),
            "about": self.about,
            "notes": self.notes,
            "rows": rows,
        })
    }

    /// The names of the peers' columns, in the order in which they come up.
    fn columns(&self) -> Vec<&'static str> {
        let mut columns = Vec::new();
        for (name, _) in self.rows.iter().flat_map(|row| &row.peers) {
            if !columns.contains(name) {
                columns.push(*name);
            }
        }
        columns
    }

    /// The table in Markdown, its columns aligned, so that it reads well as plain text too.
    pub(crate) fn table(&self) -> String {
        let columns = self.columns();
        let with_shares = self.rows.iter().any(|row| !row.shares.is_empty());
        let mut head = vec!["job".to_string(), "unit".into(), "kinglet".into(), "spread".into()];
        if with_shares {
            head.push("of peak".into());
        }
        head.extend(columns.iter().flat_map(|name| [(*name).to_string(), "ours / theirs".into()]));
        let mut cells = vec![head];
        for row in &self.rows {
            let mut line = vec![row.job.clone(), row.unit.to_string(), shown(median(&row.ours)), spread(&row.ours)];
            if with_shares {
                let place = if row.in_cache { " in cache" } else { "" };
                let share = format!("{:.0}%{place}", 100.0 * median(&row.shares));
                line.push(if row.shares.is_empty() { String::new() } else { share });
            }
            for name in &columns {
                match row.peers.iter().find(|(peer, _)| peer == name) {
                    Some((_, values)) => line.extend([shown(median(values)), format!("{:.2}", row.ratio(values))]),
                    None => line.extend([String::new(), String::new()]),
                }
            }
            cells.push(line);
        }
        aligned(&cells)
    }

    /// The table with what a reader must know of it.
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("# kinglet bench {}\n\n{}\n", self.bench, self.table());
        text +=
            &format!("Medians of the rounds; spread is (most - least) / median of kinglet. {}\n\n", machine::date());
        for (name, value) in &self.about {
            text += &format!("- {name}: {}\n", plain(value));
        }
        for note in &self.notes {
            text += &format!("- {note}\n");
        }
        text
    }

    /// Prints the report, then writes it where the options say.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn publish(&self, options: &Common) -> Result<()> {
        out(if options.json { format!("{:#}", self.json()) } else { self.markdown().trim_end().to_string() })?;
        if let Some(folder) = &options.output {
            let json = format!("{:#}\n", self.json());
            for (extension, text) in [("json", json), ("md", self.markdown())] {
                let path = folder.join(format!("{}.{extension}", self.bench));
                write_file_atomic(&Disk, &path, |file| {
                    file.write_all(text.as_bytes()).map_err(|e| Error::io(path.display(), e))
                })?;
            }
        }
        Ok(())
    }
}

/// Says that something is not measured, now and in the report.
pub(crate) fn skip(text: String, notes: &mut Vec<String>) {
    note(&text);
    notes.push(text);
}

/// Jobs that kinglet itself failed at: the rows of the others are shown all the same.
#[derive(Default)]
pub(crate) struct Failures(Vec<Error>);

impl Failures {
    /// Takes note of one.
    ///
    /// # Errors
    /// When the run is to end.
    pub(crate) fn add(&mut self, job: &str, error: Error, stop: &AtomicBool, notes: &mut Vec<String>) -> Result<()> {
        check(stop)?;
        let error = error.context(job);
        note(&error);
        notes.push(format!("not measured: {error}"));
        self.0.push(error);
        Ok(())
    }

    /// # Errors
    /// The first of them.
    pub(crate) fn end(self) -> Result<()> {
        self.0.into_iter().next().map_or(Ok(()), Err)
    }
}

/// Three digits that count.
fn shown(value: f64) -> String {
    match value.abs() {
        x if x >= 99.95 => format!("{value:.0}"),
        x if x >= 9.995 => format!("{value:.1}"),
        x if x >= 0.9995 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{:.0}%", 100.0 * (most - least) / median(values))
}

/// JSON as text in a sentence: `a 1, b 2`.
fn plain(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let parts: Vec<String> = map.iter().map(|(name, value)| format!("{name} {}", plain(value))).collect();
            parts.join(", ")
        }
        Value::String(text) => text.clone(),
        Value::Null => "none".into(),
        other => other.to_string(),
    }
}

fn aligned(cells: &[Vec<String>]) -> String {
    let width = |column: usize| cells.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..cells[0].len()).map(width).collect();
    // Text to the left, numbers to the right.
    let is_text = |column: usize| column < 2;
    let mut text = String::new();
    for (i, line) in cells.iter().enumerate() {
        for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
            text += &if is_text(column) { format!("| {cell:<width$} ") } else { format!("| {cell:>width$} ") };
        }
        text += "|\n";
        if i == 0 {
            for (column, &width) in widths.iter().enumerate() {
                let rule = "-".repeat(width);
                text += &if is_text(column) { format!("| {rule} ") } else { format!("| {}: ", &rule[1..]) };
            }
            text += "|\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let row = |job: &str, shares: Vec<f64>, peers| Row {
            ours: vec![10.0, 30.0, 20.0],
            shares,
            peers,
            ..Row::new(job.into(), "GFLOP/s")
        };
        let rows = vec![
            row("a", vec![0.5, 0.6, 0.7], vec![("PyTorch", vec![10.0, 10.0, 10.0])]),
            row("b", vec![], vec![("PyTorch tuned", vec![5.0, 60.0, 10.0])]),
        ];
        Report { bench: "op", about: Map::new(), rows, notes: vec!["one thing".into()] }
    }

    #[test]
    fn medians_and_ratios_are_of_rounds() {
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0]), median(&[7.0])), (2.0, 2.5, 7.0));
        let json = report().json();
        let peer = |row: usize, name: &str| json["rows"][row]["peers"][name]["ratio"].as_f64();
        assert_eq!(peer(0, "PyTorch"), Some(2.0));
        // Of 2, 0.5 and 2; the ratio of medians would be the same only by chance.
        assert_eq!(peer(1, "PyTorch tuned"), Some(2.0));
        assert_eq!(json["rows"][0]["share_of_peak"], 0.6);
        assert_eq!(json["rows"][1]["share_of_peak"], Value::Null);
        assert_eq!(json["rows"][0]["kinglet"]["max"], 30.0);
    }

    #[test]
    fn a_row_has_empty_cells_for_peers_that_did_not_run() {
        let expected = "\
| job | unit    | kinglet | spread | of peak | PyTorch | ours / theirs | PyTorch tuned | ours / theirs |
| --- | ------- | ------: | -----: | ------: | ------: | ------------: | ------------: | ------------: |
| a   | GFLOP/s |    20.0 |   100% |     60% |    10.0 |          2.00 |               |               |
| b   | GFLOP/s |    20.0 |   100% |         |         |               |          10.0 |          2.00 |
";
        assert_eq!(report().table(), expected);
        assert!(report().markdown().contains("- one thing\n"));
    }

    #[test]
    fn a_share_of_what_caches_move_says_so() {
        let mut report = report();
        report.rows[0].in_cache = true;
        assert!(report.table().contains(" 60% in cache |"), "{}", report.table());
        assert_eq!(report.json()["rows"][0]["in_cache"], true);
    }

    #[test]
    fn what_is_no_number_is_null() {
        assert_eq!(number(f64::NAN), Value::Null);
        assert_eq!(number(123_456.0), 123_460.0);
        assert_eq!(
            (shown(0.0531), shown(1.0), shown(99.99), shown(1234.5)),
            ("0.053".into(), "1.00".into(), "100".into(), "1234".into())
        );
    }
}
