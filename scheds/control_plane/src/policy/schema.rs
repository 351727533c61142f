//! The policy file: what may be written in it, and what is wrong with one.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::{IdSet, Matcher};

/// A mistake in a policy, or one that this machine makes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub file: PathBuf,
    /// From 1; `None` if it is about the file as a whole.
    pub line: Option<usize>,
    pub reason: String,
}

impl fmt::Display for Mistake {
    /// `policy.toml:7: reason`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// A value and the line where it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At<T> {
    pub value: T,
    /// From 1.
    pub line: usize,
}

/// How much of the machine a service gets, where it doesn't matter which part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Width {
    /// One last-level cache.
    Narrow,
    /// One NUMA node.
    Node,
    /// All CPUs but those that are exclusively others'.
    Wide,
}

/// What a service is to the schedulers.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Placed narrow, and preempts batch.
    Latency,
    #[default]
    Normal,
    /// Runs wide, and yields.
    Batch,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Latency => "latency",
            Self::Normal => "normal",
            Self::Batch => "batch",
        })
    }
}

/// Where a service is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Nodes(IdSet),
    Llcs(IdSet),
    Cpus(IdSet),
    Width(Width),
}

/// Where a service's memory is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Memory {
    /// On the nodes of its CPUs.
    Local,
    Nodes(IdSet),
}

/// A service: cgroups, and what is to be done with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// For messages: its `name`, or what it is matched by.
    pub name: String,
    pub matcher: Matcher,
    /// `None`: its CPUs are left as they are.
    pub place: Option<At<Place>>,
    /// `None`: its memory is left as it is.
    pub memory: Option<At<Memory>>,
    pub class: Class,
    /// `cpu.weight`, 1 to 10000.
    pub weight: Option<u32>,
    /// 100 to 100000 us; `None`: the scheduler's own.
    pub slice_us: Option<u32>,
    /// Its CPUs are a partition of their own, which nobody else may use.
    pub exclusive: bool,
    /// Where it begins, from 1.
    pub line: usize,
}

/// A policy file without a mistake that can be seen in the file alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub file: PathBuf,
    /// The value of `kernel.numa_balancing`; `None`: left as it is.
    pub numa_balancing: Option<At<u32>>,
    /// Whether controllers may be enabled in `cgroup.subtree_control` where a service needs them.
    pub enable_controllers: bool,
    /// In the order of the file: a cgroup is the first that matches it.
    pub services: Vec<Service>,
}

impl Policy {
    /// Reads a policy file.
    ///
    /// # Errors
    /// All mistakes that can be seen without the machine; if it can't be read or isn't TOML, that one.
    pub fn read(file: &Path) -> Result<Self, Vec<Mistake>> {
        let text = std::fs::read_to_string(file).map_err(|err| {
            vec![Mistake {
                file: file.to_owned(),
                line: None,
                reason: format!("cannot be read: {err}"),
            }]
        })?;
        Self::parse(file, &text)
    }

    /// Parses the text of a policy file; `file` is its name in messages.
    ///
    /// # Errors
    /// As [`Policy::read`].
    pub fn parse(file: &Path, text: &str) -> Result<Self, Vec<Mistake>> {
        let raw: RawFile = toml::from_str(text).map_err(|err| {
            vec![Mistake {
                file: file.to_owned(),
                line: err.span().map(|span| line_at(text, span.start)),
                reason: err.message().trim().replace('\n', ", "),
            }]
        })?;
        let mut reader = Reader {
            file,
            text,
            mistakes: Vec::new(),
        };
        let policy = reader.policy(raw);
        if reader.mistakes.is_empty() {
            Ok(policy)
        } else {
            Err(reader.mistakes)
        }
    }

    pub(super) fn mistake(&self, line: usize, reason: impl Into<String>) -> Mistake {
        Mistake {
            file: self.file.clone(),
            line: Some(line),
            reason: reason.into(),
        }
    }

    /// The service that a cgroup is, by index.
    pub fn service_of(&self, path: &str) -> Option<usize> {
        self.services
            .iter()
            .position(|service| service.matcher.matches(path))
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    before.iter().filter(|&&byte| byte == b'\n').count() + 1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    machine: RawMachine,
    #[serde(default)]
    service: Vec<Spanned<RawService>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMachine {
    numa_balancing: Option<Spanned<Switch>>,
    enable_controllers: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawService {
    name: Option<String>,
    cgroup: Option<Spanned<String>>,
    unit: Option<Spanned<String>>,
    nodes: Option<Spanned<Ids>>,
    llcs: Option<Spanned<Ids>>,
    cpus: Option<Spanned<Ids>>,
    width: Option<Spanned<Width>>,
    memory: Option<Spanned<RawMemory>>,
    #[serde(default)]
    class: Class,
    weight: Option<Spanned<i64>>,
    slice_us: Option<Spanned<i64>>,
    #[serde(default)]
    exclusive: bool,
}

/// `"0-3,8"`, `[0, 1]` or `5`.
struct Ids(IdSet);

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IdsVisitor).map(Self)
    }
}

struct IdsVisitor;

impl<'de> Visitor<'de> for IdsVisitor {
    type Value = IdSet;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ids, like \"0-3,8\" or [0, 1]")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<IdSet, E> {
        IdSet::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }

    fn visit_i64<E: de::Error>(self, id: i64) -> Result<IdSet, E> {
        self.visit_str(&id.to_string())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<IdSet, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = seq.next_element::<u32>()? {
            ids.push(id);
        }
        Ok(ids.into_iter().collect())
    }
}

struct RawMemory(Memory);

impl<'de> Deserialize<'de> for RawMemory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MemoryVisitor).map(Self)
    }
}

struct MemoryVisitor;

impl<'de> Visitor<'de> for MemoryVisitor {
    type Value = Memory;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"local\" or nodes, like \"0-1\" or [0, 1]")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Memory, E> {
        if text == "local" {
            return Ok(Memory::Local);
        }
        let nodes = IdSet::parse(text);
        nodes
            .map(Memory::Nodes)
            .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }

    fn visit_i64<E: de::Error>(self, id: i64) -> Result<Memory, E> {
        self.visit_str(&id.to_string())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Memory, A::Error> {
        IdsVisitor.visit_seq(seq).map(Memory::Nodes)
    }
}

/// `true`, `false`, or the kernel's number: 0 off, 1 on, 2 tiering of memory.
struct Switch(u32);

impl<'de> Deserialize<'de> for Switch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SwitchVisitor).map(Self)
    }
}

struct SwitchVisitor;

impl Visitor<'_> for SwitchVisitor {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("true, false, or 0 to 2")
    }

    fn visit_bool<E: de::Error>(self, on: bool) -> Result<u32, E> {
        Ok(on.into())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<u32, E> {
        match u32::try_from(number) {
            Ok(number @ 0..=2) => Ok(number),
            _ => Err(E::invalid_value(de::Unexpected::Signed(number), &self)),
        }
    }
}

type ToPlace = fn(IdSet) -> Place;

/// Turns what was parsed into a policy, and collects mistakes.
struct Reader<'a> {
    file: &'a Path,
    text: &'a str,
    mistakes: Vec<Mistake>,
}

impl Reader<'_> {
    fn line(&self, span: &Range<usize>) -> usize {
        line_at(self.text, span.start)
    }

    fn mistake(&mut self, line: usize, reason: impl Into<String>) {
        self.mistakes.push(Mistake {
            file: self.file.to_owned(),
            line: Some(line),
            reason: reason.into(),
        });
    }

    fn policy(&mut self, raw: RawFile) -> Policy {
        let numa_balancing = raw.machine.numa_balancing.map(|switch| At {
            line: self.line(&switch.span()),
            value: switch.into_inner().0,
        });
        let services = raw.service.into_iter();
        Policy {
            file: self.file.to_owned(),
            numa_balancing,
            enable_controllers: raw.machine.enable_controllers.unwrap_or(true),
            services: services.filter_map(|raw| self.service(raw)).collect(),
        }
    }

    /// `None` if it made a mistake of it.
    fn service(&mut self, raw: Spanned<RawService>) -> Option<Service> {
        let line = self.line(&raw.span());
        let mut raw = raw.into_inner();
        let matcher = self.matcher(&raw, line);
        let place = self.place(&mut raw, line);
        let memory = raw.memory.take().map(|memory| At {
            line: self.line(&memory.span()),
            value: memory.into_inner().0,
        });
        if let Some(At {
            value: Memory::Nodes(nodes),
            line,
        }) = &memory
            && nodes.is_empty()
        {
            self.mistake(*line, "`memory` is an empty set");
        }
        let weight = self.number("weight", raw.weight, 1..=10_000);
        let slice_us = self.number("slice_us", raw.slice_us, 100..=100_000);
        let matcher = matcher?;
        if raw.exclusive {
            self.check_exclusive(&matcher, place.as_ref(), line);
        }
        Some(Service {
            name: raw.name.unwrap_or_else(|| matcher.as_str().to_owned()),
            matcher,
            place,
            memory,
            class: raw.class,
            weight,
            slice_us,
            exclusive: raw.exclusive,
            line,
        })
    }

    fn matcher(&mut self, raw: &RawService, line: usize) -> Option<Matcher> {
        let (given, matcher) = match (&raw.cgroup, &raw.unit) {
            (Some(path), None) => (path, Matcher::by_path(path.get_ref())),
            (None, Some(unit)) => (unit, Matcher::by_unit(unit.get_ref())),
            (Some(_), Some(_)) => {
                self.mistake(line, "a service has either `cgroup` or `unit`, not both");
                return None;
            }
            (None, None) => {
                self.mistake(line, "a service needs `cgroup` or `unit`");
                return None;
            }
        };
        let line = self.line(&given.span());
        matcher
            .inspect_err(|reason| self.mistake(line, reason))
            .ok()
    }

    fn place(&mut self, raw: &mut RawService, line: usize) -> Option<At<Place>> {
        let mut places = Vec::new();
        let lists: [(&str, _, ToPlace); 3] = [
            ("nodes", raw.nodes.take(), Place::Nodes),
            ("llcs", raw.llcs.take(), Place::Llcs),
            ("cpus", raw.cpus.take(), Place::Cpus),
        ];
        for (key, ids, place) in lists {
            let Some(ids) = ids else { continue };
            let line = self.line(&ids.span());
            let ids = ids.into_inner().0;
            if ids.is_empty() {
                self.mistake(line, format!("`{key}` is an empty set"));
            }
            places.push((
                key,
                At {
                    value: place(ids),
                    line,
                },
            ));
        }
        if let Some(width) = raw.width.take() {
            let line = self.line(&width.span());
            let value = Place::Width(width.into_inner());
            places.push(("width", At { value, line }));
        }
        if places.len() > 1 {
            let keys: Vec<_> = places.iter().map(|(key, _)| format!("`{key}`")).collect();
            self.mistake(
                line,
                format!("a service has one place, not {}", keys.join(" and ")),
            );
        }
        places.pop().map(|(_, place)| place)
    }

    fn number(
        &mut self,
        key: &str,
        given: Option<Spanned<i64>>,
        range: std::ops::RangeInclusive<i64>,
    ) -> Option<u32> {
        let given = given?;
        let line = self.line(&given.span());
        let value = *given.get_ref();
        if !range.contains(&value) {
            let reason = format!(
                "`{key}` is {value}, not {} to {}",
                range.start(),
                range.end()
            );
            self.mistake(line, reason);
        }
        u32::try_from(value).ok()
    }

    fn check_exclusive(&mut self, matcher: &Matcher, place: Option<&At<Place>>, line: usize) {
        if !matcher.is_exact() {
            let reason = format!(
                "`exclusive` is for one cgroup, but {:?} may match several, whose partitions would overlap",
                matcher.as_str()
            );
            self.mistake(line, reason);
        }
        match place.map(|place| &place.value) {
            None => self.mistake(line, "`exclusive` needs `nodes`, `llcs`, `cpus` or `width`"),
            Some(Place::Width(Width::Wide)) => {
                self.mistake(
                    line,
                    "`exclusive` and `width = \"wide\"` exclude each other",
                );
            }
            Some(_) => {}
        }
    }
}
