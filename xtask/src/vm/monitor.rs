//! Talks to a guest's QEMU through its control socket: has it end in order, and tell where the guest's CPUs are.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

/// QEMU answers at once, unless its own threads are stuck.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Whether a CPU goes round in a circle shows if it is looked at more than once.
const LOOKS: usize = 3;
const BETWEEN: Duration = Duration::from_millis(300);

/// Has QEMU make the control socket at this path.
pub fn qemu_options(control: &Path) -> [String; 2] {
    [
        "-qmp".to_owned(),
        format!("unix:{},server=on,wait=off", control.display()),
    ]
}

/// Asks QEMU to end in order, which SIGKILL would not let it, and which it would complain about after a SIGTERM.
///
/// # Errors
/// If nobody listens there, or QEMU doesn't answer.
pub fn quit(control: &Path) -> Result<()> {
    let mut monitor = Monitor::open(control)?;
    // Its answer, if it isn't gone before that. Not to wait for it would be to hang up, and QEMU may not hear who has.
    let _ = monitor.ask(&json!({ "execute": "quit" }));
    Ok(())
}

/// Where the guest's CPUs are, some looks at it, for the one who asks why a guest hangs. `map` is the kernel's
/// `System.map`, which names the functions; a guest's kernel isn't moved at boot.
///
/// # Errors
/// If QEMU doesn't answer.
pub fn where_cpus_are(control: &Path, map: &Path) -> Result<String> {
    // One that isn't there names no function, but the addresses tell more than nothing.
    let map = fs::read_to_string(map).unwrap_or_default();
    let symbols = parse_symbols(&map);
    let mut monitor = Monitor::open(control)?;
    let mut told = String::new();
    for look in 1..=LOOKS {
        if look > 1 {
            sleep(BETWEEN);
        }
        let registers = monitor.ask(&json!({
            "execute": "human-monitor-command",
            "arguments": { "command-line": "info registers -a" },
        }))?;
        let cpus = describe(registers.as_str().unwrap_or_default(), &symbols);
        let _ = writeln!(told, "where its CPUs are, look {look}: {cpus}");
    }
    Ok(told)
}

/// A connection that takes commands.
struct Monitor {
    socket: UnixStream,
    lines: Lines<BufReader<UnixStream>>,
}

impl Monitor {
    fn open(control: &Path) -> Result<Self> {
        let socket = UnixStream::connect(control).context("connecting to QEMU")?;
        socket
            .set_read_timeout(Some(ANSWER_MAX))
            .context("limiting how long QEMU may take")?;
        let reader = socket.try_clone().context("sharing a socket")?;
        let mut monitor = Self {
            socket,
            lines: BufReader::new(reader).lines(),
        };
        monitor.ask(&json!({ "execute": "qmp_capabilities" }))?;
        Ok(monitor)
    }

    fn ask(&mut self, request: &Value) -> Result<Value> {
        writeln!(self.socket, "{request}").context("asking QEMU")?;
        for line in &mut self.lines {
            let mut answer: Value = serde_json::from_str(&line.context("listening to QEMU")?)
                .context("reading QEMU's answer")?;
            // It greets, and tells of events, unasked.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused: {error}");
            }
        }
        bail!("QEMU has closed its control socket")
    }
}

/// The addresses and names of a kernel's functions, in order.
fn parse_symbols(map: &str) -> Vec<(u64, &str)> {
    let mut symbols: Vec<_> = map
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let kind = words.next()?;
            let name = words.next()?;
            matches!(kind, "t" | "T" | "w" | "W").then_some((address, name))
        })
        .collect();
    symbols.sort_unstable();
    symbols
}

/// The place of each CPU that isn't halted, from what QEMU prints of all registers.
fn describe(registers: &str, symbols: &[(u64, &str)]) -> String {
    let (mut cpu, mut halted) = ("?", 0);
    let mut running = Vec::new();
    for line in registers.lines() {
        if let Some(id) = line.strip_prefix("CPU#") {
            cpu = id.trim();
        }
        let Some(rest) = line.strip_prefix("RIP=") else {
            continue;
        };
        if rest.contains("HLT=1") {
            halted += 1;
            continue;
        }
        let address = rest.split_whitespace().next().unwrap_or_default();
        let level = rest.split_whitespace().find(|w| w.starts_with("CPL="));
        let flags = rest.split_whitespace().find_map(|w| w.strip_prefix("RFL="));
        // The kernel holds off interrupts by this bit of the flags.
        let off = flags
            .and_then(|flags| u64::from_str_radix(flags, 16).ok())
            .is_some_and(|flags| flags & 0x200 == 0);
        running.push(format!(
            "CPU {cpu} {} {}{}",
            name_of(address, symbols),
            level.unwrap_or_default(),
            if off { " interrupts off" } else { "" }
        ));
    }
    running.push(format!("{halted} halted"));
    running.join("; ")
}

fn name_of(address: &str, symbols: &[(u64, &str)]) -> String {
    let at = u64::from_str_radix(address, 16).unwrap_or_default();
    let next = symbols.partition_point(|(start, _)| *start <= at);
    match next.checked_sub(1).map(|i| symbols[i]) {
        // Beyond the last are modules, and BPF programs.
        Some((start, name)) if next < symbols.len() => format!("{name}+{:#x}", at - start),
        _ => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    const MAP: &str = "ffffffff81000000 T _text\nffffffff81000100 t idle\nffffffff81000080 D data\n\
                       ffffffff81000200 W weak\nffffffff82000000 T _etext\n";

    #[test]
    fn cpus_that_run_are_told_by_the_kernels_functions() {
        let registers = "\r\nCPU#0\r\nRAX=1\r\nRIP=ffffffff81000110 RFL=00000046 [---Z-P-] CPL=0 II=0 HLT=0\r\n\
                         CPU#1\r\nRIP=ffffffff81000100 RFL=00000246 [---Z-P-] CPL=0 II=0 HLT=1\r\n\
                         CPU#2\r\nRIP=000055550000aaaa RFL=00000202 [-------] CPL=3 II=0 HLT=0\r\n";
        assert_eq!(
            describe(registers, &parse_symbols(MAP)),
            "CPU 0 idle+0x10 CPL=0 interrupts off; CPU 2 000055550000aaaa CPL=3; 1 halted"
        );
        assert_eq!(describe("", &[]), "0 halted");
    }

    #[test]
    fn addresses_outside_the_kernel_keep_their_number() {
        let symbols = parse_symbols(MAP);
        assert_eq!(name_of("ffffffff810002ff", &symbols), "weak+0xff");
        assert_eq!(name_of("ffffffffc0001234", &symbols), "ffffffffc0001234");
        assert_eq!(name_of("ffffffff81000110", &[]), "ffffffff81000110");
    }

    /// Where a QEMU listens.
    fn control() -> (tempfile::TempDir, PathBuf, UnixListener) {
        let dir = tempfile::tempdir().unwrap();
        let control = dir.path().join("control");
        let listener = UnixListener::bind(&control).unwrap();
        (dir, control, listener)
    }

    /// Who hangs up at once would not be heard by one that greets first.
    #[test]
    fn to_quit_is_said_until_it_was_heard() {
        let (_dir, control, listener) = control();
        let qemu = std::thread::spawn(move || {
            let (socket, _) = listener.accept().unwrap();
            sleep(Duration::from_millis(100));
            writeln!(&socket, "{}", json!({ "QMP": {} })).unwrap();
            let mut heard = Vec::new();
            for line in BufReader::new(&socket).lines() {
                let request: Value = serde_json::from_str(&line.unwrap()).unwrap();
                writeln!(&socket, "{}", json!({ "event": "STOP" })).unwrap();
                writeln!(&socket, "{}", json!({ "return": {} })).unwrap();
                heard.push(request["execute"].clone());
            }
            heard
        });
        quit(&control).unwrap();
        assert_eq!(qemu.join().unwrap(), ["qmp_capabilities", "quit"]);
    }

    /// It ends rather than to answer.
    #[test]
    fn no_answer_to_quit_is_fine() {
        let (_dir, control, listener) = control();
        let qemu = std::thread::spawn(move || {
            let (socket, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(&socket).lines();
            lines.next().unwrap().unwrap();
            writeln!(&socket, "{}", json!({ "return": {} })).unwrap();
            lines.next().unwrap().unwrap();
        });
        quit(&control).unwrap();
        qemu.join().unwrap();
    }

    #[test]
    fn nobody_listening_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(where_cpus_are(&dir.path().join("control"), &dir.path().join("map")).is_err());
    }
}
