//! Keeps the processors of this machine from sleeping while servers are measured, as booting with `idle=poll` would.
//!
//! With one client, client and server wait for each other in turns, and a processor that has nothing to do goes to sleep.
//! Waking one of a virtual machine costs more than either program's work, and differs from minute to minute: such a row
//! says more about the host than about the servers. One spinning process for each processor, in the kernel's idle class
//! (`chrt --idle`: it runs only when nothing else wants to), takes that cost from both servers alike.
//!
//! Invariant: the processes end with this one, however it ends. Each reads a pipe that only this process holds open.
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};

/// The hidden argument with which this program calls itself.
pub(crate) const SPIN_ARGUMENT: &str = "--spin-until-input-ends";

/// While it exists no processor sleeps.
pub(crate) struct Awake(Vec<Child>);

impl Awake {
    /// One process for each processor.
    ///
    /// # Errors
    /// `chrt` (of util-linux) is missing or may not change the class.
    pub(crate) fn start() -> Result<Self, String> {
        let this = std::env::current_exe().map_err(|error| format!("find this program: {error}"))?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let mut awake = Self(Vec::new());
        for _ in 0..processors {
            let mut child = Command::new("chrt")
                .args(["--idle", "0"])
                .arg(&this)
                .arg(SPIN_ARGUMENT)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(|error| format!("start chrt (of util-linux), which --keep-awake needs: {error}"))?;
            let output = child.stdout.take();
            awake.0.push(child);
            // One byte says that it runs in its class; an end without one that chrt was refused.
            let is_spinning = output.is_some_and(|mut output| output.read_exact(&mut [0]).is_ok());
            if !is_spinning {
                return Err(
                    "chrt --idle may not set the kernel's idle class, which --keep-awake needs".into()
                );
            }
        }
        Ok(awake)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What the processes do: nothing, all the time, until the pipe from their starter is closed.
pub(crate) fn spin() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let mut output = std::io::stdout();
    if output.write_all(b".").and_then(|()| output.flush()).is_err() {
        std::process::exit(1);
    }
    loop {
        // No pause instruction: a hypervisor may take a loop of those for a reason to give the processor away.
        std::hint::black_box(());
    }
}
