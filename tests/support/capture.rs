//! What goes over the wire between pods, by tcpdump on the node.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use super::lab::Lab;
use super::namespace::require_program;
use super::process::Process;

/// A running capture of every packet between pods.
pub(crate) struct Capture {
    process: Process,
    file: PathBuf,
}

/// The packets of a capture that has ended.
pub(crate) struct Packets(Vec<u8>);

impl Lab {
    /// Begins to capture; `filter` is tcpdump's, empty for everything.
    pub(crate) fn capture(&self, filter: &str) -> Capture {
        require_program("tcpdump", "tcpdump");
        let file = tempfile::Builder::new().suffix(".pcap").tempfile_in(self.dir()).expect("a capture file");
        let (_, file) = file.keep().expect("kept until the lab goes");
        let log = file.with_extension("log");
        let mut command = self.node().command("tcpdump", 0);
        command.args(["-i", "any", "-n", "-s", "0", "-U", "--immediate-mode", "-Z", "root", "-w"]);
        command.arg(&file).arg(filter);
        let mut process = Process::start(command, "tcpdump", &log);
        process.until(Duration::from_secs(10), "listening", |process| {
            process.log().contains("listening on").then_some(())
        });
        Capture { process, file }
    }
}

impl Capture {
    /// Ends the capture.
    pub(crate) fn stop(mut self) -> Packets {
        // What tcpdump has not read from the kernel when it is told to end is lost.
        let size = || std::fs::metadata(&self.file).map_or(0, |file| file.len());
        let mut before = u64::MAX;
        while before != size() {
            before = size();
            std::thread::sleep(Duration::from_millis(500));
        }
        self.process.signal(Signal::INT);
        self.process.wait(Duration::from_secs(10));
        Packets(std::fs::read(&self.file).expect("the capture file"))
    }
}

impl Packets {
    /// Whether any packet holds `bytes`. They must be short enough to lie in one packet.
    pub(crate) fn contain(&self, bytes: &[u8]) -> bool {
        self.0.windows(bytes.len()).any(|window| window == bytes)
    }

    /// How many bytes were captured, headers included.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}
