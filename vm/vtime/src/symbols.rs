//! QEMU's functions, found by name in the running process.
//!
//! Debian's QEMU exports all of its symbols, as plugins need some of them. Looking them up at run time, the plugin
//! API's included, needs no headers and no link-time stub, and a missing one is a refusal with its name instead of a
//! loader error.

use crate::Refusal;
use libc::{c_char, c_int, c_uint, c_void};
use std::ffi::{CStr, CString};

/// QEMU's `CPUState`, opaque.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct CpuState {
    _opaque: [u8; 0],
}

/// `QEMU_CLOCK_VIRTUAL`.
pub(crate) const CLOCK_VIRTUAL: c_int = 1;
/// `QEMU_TIMER_ATTR_ALL`.
pub(crate) const TIMER_ATTR_ALL: c_int = -1;
/// `cpu_exec()`'s result when the loop was left for no reason of the guest's.
pub(crate) const EXCP_INTERRUPT: c_int = 0x10000;
/// `cpu_exec()`'s result for a vCPU that was halted already.
pub(crate) const EXCP_HALTED: c_int = 0x10003;

/// A plugin's identity, as QEMU hands it out.
pub(crate) type PluginId = u64;

/// Callback of `qemu_plugin_register_vcpu_init_cb`.
pub(crate) type VcpuCallback = extern "C" fn(PluginId, c_uint);
/// Callback of `qemu_plugin_register_vcpu_tb_trans_cb`.
pub(crate) type TranslateCallback = extern "C" fn(PluginId, *mut c_void);
/// Callback of `qemu_plugin_register_atexit_cb`.
pub(crate) type ExitCallback = extern "C" fn(PluginId, *mut c_void);
/// Callback of `qemu_plugin_register_vcpu_insn_exec_cb`.
pub(crate) type InsnCallback = extern "C" fn(c_uint, *mut c_void);

/// Declares the table of functions and how to fill it: the field's name is the symbol's.
macro_rules! symbols {
    ($($name:ident: $type:ty,)*) => {
        /// The functions of QEMU that are used, by their names.
        #[derive(Debug, Clone, Copy)]
        pub(crate) struct Symbols { $(pub(crate) $name: $type,)* }

        impl Symbols {
            /// Looks all of them up.
            pub(crate) fn load() -> Result<Self, Refusal> {
                // SAFETY: the types are those of QEMU's declarations (10.0), and `address` refuses to return null.
                Ok(unsafe { Self { $($name: std::mem::transmute::<*mut c_void, $type>(address(stringify!($name))?),)* } })
            }
        }
    };
}

// SAFETY: all pointers are to code and to variables of QEMU, which outlive every thread; what they may be used for, and
// on which thread, is said where they are.
unsafe impl Send for Symbols {}
// SAFETY: as above.
unsafe impl Sync for Symbols {}

symbols! {
    // Execution of a vCPU.
    tcg_cpu_exec: unsafe extern "C" fn(*mut CpuState) -> c_int,
    cpu_exec: unsafe extern "C" fn(*mut CpuState) -> c_int,
    cpu_exec_start: unsafe extern "C" fn(*mut CpuState),
    cpu_exec_end: unsafe extern "C" fn(*mut CpuState),
    cpu_exit: unsafe extern "C" fn(*mut CpuState),
    cpu_thread_is_idle: unsafe extern "C" fn(*mut CpuState) -> bool,
    qemu_in_vcpu_thread: unsafe extern "C" fn() -> bool,
    // Instruction counting.
    icount_get: unsafe extern "C" fn() -> i64,
    icount_get_raw: unsafe extern "C" fn() -> i64,
    icount_to_ns: unsafe extern "C" fn(i64) -> i64,
    icount_update: unsafe extern "C" fn(*mut CpuState),
    icount_prepare_for_run: unsafe extern "C" fn(*mut CpuState, i64),
    icount_handle_interrupt: unsafe extern "C" fn(*mut CpuState, c_int),
    rr_kick_vcpu_thread: unsafe extern "C" fn(*mut CpuState),
    use_icount: *const c_int,
    replay_mode: *const c_int,
    // Clocks.
    qemu_clock_get_ns: unsafe extern "C" fn(c_int) -> i64,
    qemu_clock_deadline_ns_all: unsafe extern "C" fn(c_int, c_int) -> i64,
    cpus_get_virtual_clock: unsafe extern "C" fn() -> i64,
    cpus_get_elapsed_ticks: unsafe extern "C" fn() -> i64,
    // The object model, and the version.
    object_class_by_name: unsafe extern "C" fn(*const c_char) -> *mut c_void,
    qmp_query_version: unsafe extern "C" fn(*mut *mut c_void) -> *const VersionInfo,
    // The plugin API, version 4.
    qemu_plugin_register_vcpu_init_cb: unsafe extern "C" fn(PluginId, VcpuCallback),
    qemu_plugin_register_vcpu_tb_trans_cb: unsafe extern "C" fn(PluginId, TranslateCallback),
    qemu_plugin_register_atexit_cb: unsafe extern "C" fn(PluginId, ExitCallback, *mut c_void),
    qemu_plugin_register_vcpu_insn_exec_cb: unsafe extern "C" fn(*mut c_void, InsnCallback, c_int, *mut c_void),
    qemu_plugin_register_vcpu_tb_exec_cb: unsafe extern "C" fn(*mut c_void, InsnCallback, c_int, *mut c_void),
    qemu_plugin_tb_vaddr: unsafe extern "C" fn(*const c_void) -> u64,
    qemu_plugin_tb_n_insns: unsafe extern "C" fn(*const c_void) -> usize,
    qemu_plugin_tb_get_insn: unsafe extern "C" fn(*const c_void, usize) -> *mut c_void,
    qemu_plugin_insn_data: unsafe extern "C" fn(*const c_void, *mut c_void, usize) -> usize,
    qemu_plugin_insn_size: unsafe extern "C" fn(*const c_void) -> usize,
}

/// QAPI's `VersionInfo`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct VersionInfo {
    triple: *const [i64; 3],
    package: *const c_char,
}

/// QEMU's version: the numbers, and the distribution's package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) triple: [i64; 3],
    pub(crate) package: String,
}

impl Version {
    /// Asks QEMU.
    pub(crate) fn query(symbols: &Symbols) -> Result<Self, Refusal> {
        // SAFETY: the function only allocates its answer; with a null `errp` it cannot report an error.
        let info = unsafe { (symbols.qmp_query_version)(std::ptr::null_mut()) };
        if info.is_null() {
            return Err(Refusal::Layout("query-version gives no answer".into()));
        }
        // SAFETY: QAPI's schema has had these two members, in this order, since QEMU 2.4; both are never null.
        unsafe {
            let package = CStr::from_ptr((*info).package)
                .to_string_lossy()
                .into_owned();
            Ok(Self {
                triple: *(*info).triple,
                package,
            })
        }
    }

    /// As `10.0.2`.
    pub(crate) fn number(&self) -> String {
        let [major, minor, micro] = self.triple;
        format!("{major}.{minor}.{micro}")
    }
}

/// The address of a symbol of the running program.
fn address(name: &str) -> Result<*mut c_void, Refusal> {
    let c_name = CString::new(name).map_err(|_| Refusal::Symbol(name.into()))?;
    // SAFETY: the name is a valid C string.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c_name.as_ptr()) };
    if address.is_null() {
        Err(Refusal::Symbol(name.into()))
    } else {
        Ok(address)
    }
}
