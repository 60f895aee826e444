//! Listeners, bound before anything else is begun.

use super::StartError;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

/// A bound listener, kept so that a task that was restarted goes on with it.
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    bound: std::net::TcpListener,
}

impl Listener {
    /// Binds an address; `setting` is named where that fails.
    pub(super) fn bind(address: SocketAddr, setting: &str) -> Result<Self, StartError> {
        let bound = bind(address).map_err(|e| {
            let why = match e.kind() {
                ErrorKind::AddrInUse => "the port is in use already".to_owned(),
                ErrorKind::AddrNotAvailable => "no interface here has this address".to_owned(),
                ErrorKind::PermissionDenied => "no permission; ports below 1024 may need one".to_owned(),
                _ => e.to_string(),
            };
            StartError::Listen(format!("cannot listen on {address} ({setting}): {why}"))
        })?;
        let address = bound.local_addr().unwrap_or(address);
        Ok(Self { address, bound })
    }

    /// The listener for tokio.
    pub(super) fn again(&self) -> io::Result<tokio::net::TcpListener> {
        tokio::net::TcpListener::from_std(self.bound.try_clone()?)
    }
}

/// std sets SO_REUSEADDR on Unix: a restart does not wait for old connections.
fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let bound = std::net::TcpListener::bind(address)?;
    bound.set_nonblocking(true)?;
    Ok(bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_named() {
        let first = Listener::bind(([127, 0, 0, 1], 0).into(), "A").unwrap();
        let Err(StartError::Listen(words)) = Listener::bind(first.address, "B") else {
            panic!("bound twice");
        };
        assert!(words.contains(&format!("{} (B): the port is in use", first.address)), "{words}");
    }
}
