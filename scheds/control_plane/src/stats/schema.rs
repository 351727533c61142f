//! What a daemon's statistics are: names, kinds, units and meanings, from the derived `scx_stats` metadata.

use std::io::Write;

use anyhow::{Context, Result};
use scx_stats::{StatsData, StatsKind, StatsMeta, StatsServerData};

use super::Record;

/// How a figure behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Events since the daemon was started: it only grows.
    Counter,
    /// A value of the moment.
    Gauge,
    /// How often something took how long, since the daemon was started.
    Histogram,
}

impl Kind {
    /// `counter`, `gauge` or `histogram`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub kind: Kind,
    /// In the plural, as OpenMetrics wants it: `seconds`, `tasks`.
    pub unit: Option<String>,
    pub help: String,
}

/// All figures of one daemon, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    pub fields: Vec<Field>,
}

impl Schema {
    /// That of a daemon's struct.
    pub fn of<S: Record>() -> Self {
        Self::new(&S::meta())
    }

    /// Only numbers and histograms are figures; other fields are left out.
    pub fn new(meta: &StatsMeta) -> Self {
        let numbers = meta.fields.iter().filter(|(_, field)| {
            matches!(
                field.data,
                StatsData::Datum(StatsKind::U64 | StatsKind::I64 | StatsKind::Float)
            ) || field.attrs.user.contains_key("_hist")
        });
        let field = |(name, field): (&String, &scx_stats::StatsField)| Field {
            name: name.clone(),
            kind: if field.attrs.user.contains_key("_gauge") {
                Kind::Gauge
            } else if field.attrs.user.contains_key("_hist") {
                Kind::Histogram
            } else {
                Kind::Counter
            },
            unit: field.attrs.user.get("_unit").cloned(),
            help: field.attrs.desc.clone().unwrap_or_default(),
        };
        Self {
            fields: numbers.map(field).collect(),
        }
    }

    /// Reads what [`describe`] wrote as JSON.
    ///
    /// # Errors
    /// If it is something else.
    pub fn parse(json: &str) -> Result<Self> {
        let meta: StatsMeta =
            serde_json::from_str(json).context("not a description of statistics")?;
        Ok(Self::new(&meta))
    }

    /// The histogram of which this is the sum.
    pub(super) fn histogram_of(&self, field: &Field) -> Option<&Field> {
        let name = field.name.strip_suffix("_sum")?;
        self.fields
            .iter()
            .find(|other| other.kind == Kind::Histogram && other.name == name)
    }

    /// A table in Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "| field | kind | unit | OpenMetrics | meaning |\n|---|---|---|---|---|\n",
        );
        for field in &self.fields {
            let metric = match self.histogram_of(field) {
                Some(histogram) => format!("{}_sum", super::metrics::name_of(histogram)),
                None => super::metrics::name_of(field),
            };
            text += &format!(
                "| `{}` | {} | {} | `{}` | {} |\n",
                field.name,
                field.kind.name(),
                field.unit.as_deref().unwrap_or(""),
                metric,
                field.help.replace('|', "\\|")
            );
        }
        text
    }
}

/// Describes all statistics of a daemon on `out`, as upstream's daemons do or as JSON.
///
/// # Errors
/// If `out` can't be written.
pub fn describe<S: Record>(out: &mut impl Write, json: bool) -> Result<()> {
    if json {
        serde_json::to_writer_pretty(&mut *out, &S::meta())?;
        return Ok(writeln!(out)?);
    }
    StatsServerData::<(), S>::new()
        .add_meta(S::meta())
        .describe_meta(out, None)
}

#[cfg(test)]
mod tests {
    use super::super::metrics::tests::Sample;
    use super::*;

    #[test]
    fn kinds_and_units_come_from_the_struct() {
        let mut json = Vec::new();
        describe::<Sample>(&mut json, true).unwrap();
        let schema = Schema::parse(std::str::from_utf8(&json).unwrap()).unwrap();
        assert_eq!(schema, Schema::of::<Sample>());
        let kinds: Vec<_> = schema
            .fields
            .iter()
            .map(|f| (f.name.as_str(), f.kind, f.unit.as_deref()))
            .collect();
        assert_eq!(
            kinds,
            [
                ("enqueues", Kind::Counter, Some("tasks")),
                ("load", Kind::Gauge, None),
                ("queued", Kind::Gauge, Some("tasks")),
                ("wait_ns", Kind::Histogram, Some("nanoseconds")),
                ("wait_ns_sum", Kind::Counter, Some("nanoseconds")),
            ]
        );
        assert!(schema.markdown().contains(
            "| `enqueues` | counter | tasks | `manycore_enqueues_tasks_total` | tasks put into a queue |\n"
        ));
    }
}
