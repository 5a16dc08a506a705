//! A command that is to run beside a confined server without being confined itself.
//!
//! It is started early, as a shell that waits for one line on a pipe, and gets that line (the
//! server's address) when there is somebody to talk to. No signal is needed to let it go: a
//! confined process may send none. Refuses to outlive its purpose: without a line it ends.

use std::io::{self, PipeWriter, Write};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, ExitStatus};

use rustix::io::FdFlags;

/// What the shell ends with when the server never called it.
const NEVER_CALLED: &str = "125";

/// A command that waits to be let go.
#[derive(Debug)]
pub struct Captive {
    child: Child,
    /// Dropped: the shell reads the end of the pipe and ends.
    call: Option<PipeWriter>,
}

impl Captive {
    /// Starts a shell that will run `command` once it is released. To be called before anything is
    /// confined: a child inherits every restriction and the user of this process.
    ///
    /// # Errors
    /// What the system says when no process is to be had.
    pub fn spawn(command: &str) -> io::Result<Self> {
        let (wait, call) = io::pipe()?;
        // The shell's own standard input stays what it was, for the command. The only other way to
        // hand a descriptor on without unsafe is not to close it.
        rustix::io::fcntl_setfd(&wait, FdFlags::empty())?;
        let number = wait.as_raw_fd();
        // A plain shell closes descriptors of one digit only. Left open, this one does no harm: it
        // is the end of a pipe that nobody writes to any more.
        let closed = if number < 10 { format!("exec {number}<&-; ") } else { String::new() };
        let script = format!(
            "IFS= read -r uri </dev/fd/{number} || exit {NEVER_CALLED}; {closed}export uri; \
             exec sh -c \"$1\""
        );
        let child = Command::new("sh").args(["-c", &script, "orlop-captive", command]).spawn()?;
        Ok(Self { child, call: Some(call) })
    }

    /// Lets the command run, with `uri` in its environment. One line: URIs hold no line ends.
    ///
    /// # Errors
    /// When the shell has been killed meanwhile.
    pub fn release(&mut self, uri: &str) -> io::Result<()> {
        let Some(mut call) = self.call.take() else { return Ok(()) };
        call.write_all(format!("{uri}\n").as_bytes())
    }

    /// Waits for the end of a command that was released. Blocks; a confined process may do this.
    ///
    /// # Errors
    /// What the system says of a process that cannot be waited for.
    pub fn wait(mut self) -> io::Result<ExitStatus> {
        self.call = None;
        self.child.wait()
    }
}

impl Drop for Captive {
    fn drop(&mut self) {
        // Never released: the shell ends by itself at once, and must not stay as a zombie.
        if self.call.take().is_some() {
            let _nothing_to_do = self.child.wait();
        }
    }
}
