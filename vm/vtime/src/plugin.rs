//! The plugin: what QEMU calls, and what is called in place of QEMU's own.
//!
//! Three of QEMU's functions are replaced, and the guest's code is not instrumented but for PAUSE, MWAIT and [`NOTE`]:
//!
//! * `tcg_cpu_exec`, by [`turn`]: a vCPU's turn. It decides whether the vCPU runs at all and for how many
//!   instructions, which QEMU then keeps to exactly.
//! * the accelerator's clock, by [`clock`]: QEMU's count of instructions plus the offset of the vCPU that is running.
//! * the accelerator's kick and interrupt handler, by [`kick`] and [`handle_interrupt`]: to see who wakes whom.

use crate::clocks::{Clocks, Slot, Turn, Visit};
use crate::options::Options;
use crate::probe::{self, Budget, Operations};
use crate::symbols::{
    CLOCK_VIRTUAL, CpuState, EXCP_HALTED, EXCP_INTERRUPT, PluginId, Symbols, TIMER_ATTR_ALL,
    Version,
};
use crate::{KNOWN_VERSIONS, Refusal, patch, profile};
use libc::{c_char, c_int, c_uint, c_void};
use serde_json::json;
use std::collections::HashMap;
use std::ffi::CStr;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// The version of the plugin API that this is written for: QEMU 10.0's.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static qemu_plugin_version: c_int = 4;

/// What has to be added to QEMU's count, in ns, to get the clock of the vCPU that is running or, between turns,
/// [`Clocks::now_ns`].
static OFFSET: AtomicI64 = AtomicI64::new(0);
/// The vCPU whose turn it is, null between turns.
static RUNNING: AtomicPtr<CpuState> = AtomicPtr::new(null_mut());
/// The turn ended with PAUSE.
static PAUSED: AtomicBool = AtomicBool::new(false);
/// The turn is to end early because of what the guest or a device does.
static CUT: AtomicBool = AtomicBool::new(false);
/// The turn ended with a note.
static NOTED: AtomicBool = AtomicBool::new(false);
/// MWAITs executed.
static MWAITS: AtomicU64 = AtomicU64::new(0);
static VM: OnceLock<Vm> = OnceLock::new();

/// `nop dword ptr [rax + 0x6d63766d]`: with it a guest's program asks for a note of how many instructions have been
/// executed so far, by all vCPUs together. It does nothing on any processor, and no compiler pads with it.
const NOTE: [u8; 7] = [0x0f, 0x1f, 0x80, 0x6d, 0x76, 0x63, 0x6d];
/// Notes that are kept.
const NOTES_MAX: usize = 100_000;

struct Vm {
    symbols: Symbols,
    options: Options,
    version: Version,
    budget: OnceLock<Budget>,
    core: Mutex<Core>,
}

/// What only the holder of the lock may touch.
struct Core {
    clocks: Clocks,
    slots: HashMap<usize, Slot>,
    /// vCPUs in the order of their slots: QEMU visits them in the same order over and over.
    order: Vec<usize>,
    next: usize,
    /// Instructions executed when a [`NOTE`] was.
    marks: Vec<i64>,
}

impl Core {
    fn slot(&mut self, cpu: *mut CpuState) -> Slot {
        let cpu = cpu as usize;
        if self.next >= self.order.len() {
            self.next = 0;
        }
        if self.order.get(self.next) == Some(&cpu) {
            self.next += 1;
            return Slot(self.next as u32 - 1);
        }
        let (clocks, order) = (&mut self.clocks, &mut self.order);
        let slot = *self.slots.entry(cpu).or_insert_with(|| {
            order.push(cpu);
            clocks.add()
        });
        self.next = slot.0 as usize + 1;
        slot
    }
}

/// QEMU's entry point: reads the arguments, and asks to be called when the first vCPU is there.
///
/// # Safety
/// Called by QEMU as its plugin API defines.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: PluginId,
    _info: *const c_void,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    let arguments: Vec<String> = (0..argc.max(0) as usize)
        .map(|index| {
            // SAFETY: QEMU passes argc valid strings.
            unsafe { CStr::from_ptr(*argv.add(index)) }
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    match install(id, &arguments) {
        Ok(()) => 0,
        Err(refusal) => {
            eprintln!("vtime: {refusal}");
            -1
        }
    }
}

fn install(id: PluginId, arguments: &[String]) -> Result<(), Refusal> {
    if cfg!(not(target_arch = "x86_64")) {
        return Err(Refusal::Setup("only x86-64 hosts are supported"));
    }
    let options = Options::parse(arguments.iter().map(String::as_str))?;
    let symbols = Symbols::load()?;
    let version = Version::query(&symbols)?;
    if !KNOWN_VERSIONS.contains(&version.triple) && !options.untested {
        return Err(Refusal::Version(version.number()));
    }
    let command_line = std::fs::read("/proc/self/cmdline").unwrap_or_default();
    if !String::from_utf8_lossy(&command_line).contains("sleep=off") {
        return Err(Refusal::Setup(
            "sleep=off is missing, so idle time would pass at the host's pace",
        ));
    }
    let clocks = Clocks::new(options.quantum_ns);
    let core = Core {
        clocks,
        slots: HashMap::new(),
        order: Vec::new(),
        next: 0,
        marks: Vec::new(),
    };
    let vm = Vm {
        symbols,
        options,
        version,
        budget: OnceLock::new(),
        core: Mutex::new(core),
    };
    if VM.set(vm).is_err() {
        return Err(Refusal::Setup("the plugin is loaded twice"));
    }
    // SAFETY: `id` is ours, the callbacks have the right types.
    unsafe {
        (symbols.qemu_plugin_register_vcpu_init_cb)(id, on_vcpu_init);
        (symbols.qemu_plugin_register_vcpu_tb_trans_cb)(id, on_translate);
        (symbols.qemu_plugin_register_atexit_cb)(id, on_exit, null_mut());
    }
    Ok(())
}

/// A vCPU is there. With the first one, before any guest code: hook in. Runs on the vCPU thread.
extern "C" fn on_vcpu_init(_id: PluginId, _index: c_uint) {
    static HOOKED: AtomicBool = AtomicBool::new(false);
    if !HOOKED.swap(true, Relaxed)
        && let Err(refusal) = vm().hook()
    {
        refuse(&refusal);
    }
}

/// The whole VM has to go: with a wrong clock it must not run on. `_exit`, as other threads may hold QEMU's locks.
fn refuse(refusal: &Refusal) -> ! {
    eprintln!("vtime: {refusal}");
    // SAFETY: no preconditions.
    unsafe { libc::_exit(1) }
}

/// The one VM of this process: hooks are called only once it has been set.
fn vm() -> &'static Vm {
    match VM.get() {
        Some(vm) => vm,
        None => refuse(&Refusal::Setup("called before installation")),
    }
}

impl Vm {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hook(&self) -> Result<(), Refusal> {
        let symbols = &self.symbols;
        // SAFETY: two ints that are set once at QEMU's start.
        if unsafe { *symbols.use_icount } != 1 {
            return Err(Refusal::Setup("-icount with a fixed shift is missing"));
        }
        // SAFETY: as above.
        if unsafe { *symbols.replay_mode } != 0 {
            return Err(Refusal::Setup("record and replay is not supported"));
        }
        probe::replace_operations(
            symbols,
            Operations {
                clock,
                handle_interrupt,
                kick,
            },
            &OFFSET,
        )?;
        // SAFETY: the vCPU thread is the only one that calls this function, and it is here; the signature is the same.
        unsafe {
            patch::redirect(
                probe::code(symbols.tcg_cpu_exec as usize),
                turn as *const c_void,
            )
        }
    }

    /// Where a vCPU's budget is. The first call finds out, and takes QEMU's own budgeting out of action.
    fn budget(&self) -> Result<&Budget, Refusal> {
        if let Some(budget) = self.budget.get() {
            return Ok(budget);
        }
        let budget = Budget::probe(&self.symbols, &OFFSET)?;
        // SAFETY: as in `hook`; the function returns nothing.
        unsafe { patch::disable(probe::code(self.symbols.icount_prepare_for_run as usize)) }?;
        Ok(self.budget.get_or_init(|| budget))
    }

    /// Decides on the turn of `cpu`: `Ok` with its slot and room in ns, and the clock set to the vCPU's, or `Err`
    /// with what to tell QEMU instead.
    fn begin(&self, cpu: *mut CpuState) -> Result<(Slot, i64), c_int> {
        let symbols = &self.symbols;
        // SAFETY: `cpu` is a live vCPU; no guest code is running.
        let (idle, count) = unsafe { ((symbols.cpu_thread_is_idle)(cpu), (symbols.icount_get)()) };
        let mut core = self.core();
        let slot = core.slot(cpu);
        core.clocks.advance_to(count + OFFSET.load(Relaxed));
        let result = match core.clocks.visit(slot, idle) {
            Visit::Idle => Err(EXCP_HALTED),
            Visit::Wait => Err(EXCP_INTERRUPT),
            Visit::Run { start_ns, room_ns } => {
                OFFSET.store(start_ns - count, Relaxed);
                // SAFETY: reads the timer lists, under their locks. Negative: there is no timer.
                match unsafe { (symbols.qemu_clock_deadline_ns_all)(CLOCK_VIRTUAL, TIMER_ATTR_ALL) }
                {
                    0 => Err(EXCP_INTERRUPT),
                    1.. if room_ns <= 0 => Err(EXCP_INTERRUPT),
                    deadline @ 1.. => return Ok((slot, room_ns.min(deadline))),
                    _ => return Ok((slot, room_ns)),
                }
            }
        };
        if result == Err(EXCP_INTERRUPT) {
            core.clocks.stats.waits += 1;
        }
        OFFSET.store(core.clocks.now_ns() - count, Relaxed);
        result
    }

    /// A vCPU's turn.
    fn turn(&self, cpu: *mut CpuState) -> c_int {
        let budget = match self.budget() {
            Ok(budget) => budget,
            Err(refusal) => refuse(&refusal),
        };
        let (slot, room_ns) = match self.begin(cpu) {
            Ok(turn) => turn,
            Err(result) => return result,
        };
        let symbols = &self.symbols;
        // SAFETY: what `tcg_cpu_exec` does, on its thread and with its argument; the budget is that of an idle vCPU.
        let (result, allowed, executed) = unsafe {
            let allowed =
                1.max((room_ns + (symbols.icount_to_ns)(1) - 1) / (symbols.icount_to_ns)(1));
            let before = (symbols.icount_get_raw)();
            budget.set(cpu, allowed);
            PAUSED.store(false, Relaxed);
            CUT.store(false, Relaxed);
            RUNNING.store(cpu, Relaxed);
            (symbols.cpu_exec_start)(cpu);
            let result = (symbols.cpu_exec)(cpu);
            (symbols.cpu_exec_end)(cpu);
            RUNNING.store(null_mut(), Relaxed);
            (symbols.icount_update)(cpu);
            (result, allowed, (symbols.icount_get_raw)() - before)
        };
        if !(0..=allowed).contains(&executed) {
            refuse(&Refusal::Layout(format!(
                "{executed} instructions were executed in a turn of {allowed}"
            )));
        }
        self.end(cpu, slot, room_ns, executed, result);
        result
    }

    fn end(&self, cpu: *mut CpuState, slot: Slot, room_ns: i64, executed: i64, result: c_int) {
        let symbols = &self.symbols;
        // SAFETY: as in `begin`.
        let (idle, ran_ns) = unsafe {
            (
                (symbols.cpu_thread_is_idle)(cpu),
                (symbols.icount_to_ns)(executed),
            )
        };
        let paused = PAUSED.load(Relaxed);
        let interrupted =
            result == EXCP_INTERRUPT && !paused && !CUT.load(Relaxed) && ran_ns < room_ns;
        let mut core = self.core();
        if NOTED.swap(false, Relaxed) && core.marks.len() < NOTES_MAX {
            // SAFETY: as in `begin`.
            core.marks.push(unsafe { (symbols.icount_get_raw)() });
        }
        core.clocks.finish(
            slot,
            Turn {
                ran_ns,
                room_ns,
                paused,
                idle,
                interrupted,
            },
        );
        // SAFETY: as in `begin`.
        OFFSET.store(
            core.clocks.now_ns() - unsafe { (symbols.icount_get)() },
            Relaxed,
        );
    }
}

/// In place of `tcg_cpu_exec`.
extern "C" fn turn(cpu: *mut CpuState) -> c_int {
    vm().turn(cpu)
}

/// In place of `icount_get` as the accelerator's clock: RDTSC, the local APIC's timer, HPET and all others read it.
extern "C" fn clock() -> i64 {
    // SAFETY: called where QEMU would have called it.
    unsafe { (vm().symbols.icount_get)() + OFFSET.load(Relaxed) }
}

/// In place of `rr_kick_vcpu_thread`: ends the current turn.
///
/// QEMU's own makes every vCPU leave its next turn at once, each time with a pass over all vCPUs: quadratic, and
/// not needed, as whatever the kick is for is looked at in each vCPU's visit.
extern "C" fn kick(_cpu: *mut CpuState) {
    let symbols = &vm().symbols;
    let running = RUNNING.load(Relaxed);
    if running.is_null() {
        return;
    }
    // SAFETY: vCPUs are not destroyed during a turn, and one that has just ended is only made to yield once.
    unsafe {
        if (symbols.qemu_in_vcpu_thread)() {
            CUT.store(true, Relaxed);
        }
        (symbols.cpu_exit)(running);
    }
}

/// In place of `icount_handle_interrupt`: notes who is woken, and by whom.
extern "C" fn handle_interrupt(cpu: *mut CpuState, mask: c_int) {
    let vm = vm();
    let symbols = &vm.symbols;
    // SAFETY: QEMU's arguments, passed on.
    unsafe { (symbols.icount_handle_interrupt)(cpu, mask) };
    // SAFETY: `cpu` is a live vCPU.
    let (inside, idle) = unsafe {
        (
            (symbols.qemu_in_vcpu_thread)(),
            (symbols.cpu_thread_is_idle)(cpu),
        )
    };
    if !inside {
        // A device served by another thread: the vCPU joins when it is visited, which must be soon.
        CUT.store(true, Relaxed);
        return;
    }
    let running = RUNNING.load(Relaxed);
    if idle || cpu == running {
        return;
    }
    let mut core = vm.core();
    let slot = core.slot(cpu);
    if running.is_null() {
        core.clocks.wake(slot);
    } else if core.clocks.wake_by_running(slot) {
        drop(core);
        kick(cpu);
    }
}

extern "C" fn on_pause(_index: c_uint, _data: *mut c_void) {
    PAUSED.store(true, Relaxed);
}

/// Ends the turn, as the count is only exact between turns.
extern "C" fn on_note(_index: c_uint, _data: *mut c_void) {
    NOTED.store(true, Relaxed);
    kick(null_mut());
}

extern "C" fn on_mwait(_index: c_uint, _data: *mut c_void) {
    PAUSED.store(true, Relaxed);
    if MWAITS.fetch_add(1, Relaxed) == 0 {
        eprintln!(
            "vtime: the guest uses MWAIT, which QEMU executes like PAUSE: idle vCPUs look busy. \
             Add monitor=off to -cpu, or idle=halt to the kernel's command line."
        );
    }
}

/// New guest code is translated: watch its PAUSEs, MWAITs and notes.
extern "C" fn on_translate(_id: PluginId, block: *mut c_void) {
    let symbols = &vm().symbols;
    if RUNNING.load(Relaxed).is_null() {
        refuse(&Refusal::Layout("guest code runs outside of a turn".into()));
    }
    if vm().options.profile.is_some() {
        count_block(symbols, block);
    }
    // SAFETY: the plugin API's handles are valid during the callback.
    unsafe {
        for index in 0..(symbols.qemu_plugin_tb_n_insns)(block) {
            let insn = (symbols.qemu_plugin_tb_get_insn)(block, index);
            let size = (symbols.qemu_plugin_insn_size)(insn);
            let mut bytes = [0u8; NOTE.len()];
            if !matches!(size, 2 | 3 | 7)
                || (symbols.qemu_plugin_insn_data)(insn, bytes.as_mut_ptr().cast(), bytes.len())
                    < size
            {
                continue;
            }
            let callback: extern "C" fn(c_uint, *mut c_void) = match &bytes[..size] {
                [0xf3, 0x90] => on_pause,
                [0x0f, 0x01, 0xc9] => on_mwait,
                bytes if *bytes == NOTE => on_note,
                _ => continue,
            };
            (symbols.qemu_plugin_register_vcpu_insn_exec_cb)(insn, callback, 0, null_mut());
        }
    }
}

/// The guest marks the beginning or the end of what it wants counted. At the end, the file is written.
extern "C" fn on_mark(_index: c_uint, _data: *mut c_void) {
    if let Some(path) = &vm().options.profile
        && let Err(error) = profile::mark(path)
    {
        eprintln!("vtime: cannot write {}: {error}", path.display());
    }
}

/// Has the executions of a block counted, and its marks obeyed.
fn count_block(symbols: &Symbols, block: *mut c_void) {
    // SAFETY: as in `on_translate`, which calls this.
    unsafe {
        let size = (symbols.qemu_plugin_tb_n_insns)(block);
        let data = profile::add((symbols.qemu_plugin_tb_vaddr)(block), size);
        (symbols.qemu_plugin_register_vcpu_tb_exec_cb)(block, profile::on_block, 0, data);
        for index in 0..size {
            let insn = (symbols.qemu_plugin_tb_get_insn)(block, index);
            let mut bytes = [0u8; profile::MARK.len()];
            let read =
                (symbols.qemu_plugin_insn_data)(insn, bytes.as_mut_ptr().cast(), bytes.len());
            if read == bytes.len() && bytes == profile::MARK {
                (symbols.qemu_plugin_register_vcpu_insn_exec_cb)(insn, on_mark, 0, null_mut());
            }
        }
    }
}

extern "C" fn on_exit(_id: PluginId, _data: *mut c_void) {
    let vm = vm();
    let Some(path) = &vm.options.stats else {
        return;
    };
    let (mut report, vcpus, marks) = {
        let core = vm.core();
        (
            core.clocks.stats.to_json(),
            core.clocks.len(),
            core.marks.clone(),
        )
    };
    let mwaits = MWAITS.load(Relaxed);
    if let Some(report) = report.as_object_mut() {
        report.insert("plugin".into(), json!(env!("CARGO_PKG_VERSION")));
        report.insert("qemu".into(), json!(vm.version.number()));
        report.insert("package".into(), json!(vm.version.package));
        report.insert("quantum_ns".into(), json!(vm.options.quantum_ns));
        report.insert("vcpus".into(), json!(vcpus));
        report.insert("mwaits".into(), json!(mwaits));
        report.insert("marks".into(), json!(marks));
        report.insert("trusted".into(), json!(mwaits == 0));
    }
    if let Err(error) = std::fs::write(path, format!("{report}\n")) {
        eprintln!("vtime: cannot write {}: {error}", path.display());
    }
}
