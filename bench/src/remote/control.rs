//! The client's end of the control connection.

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use super::protocol::{
    self, Answer, Counts, FastPath, IDLE_LIMIT, Mode, Node, Purpose, Request, VERSION,
};

/// How long the server may take to be reached.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take to answer: it waits for its agent, and for another client's end.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// Why the server does not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not reached.
    #[error(
        "--server = {to}: {source}: start `bench server` there, and let its port pass, TCP and UDP"
    )]
    Connect {
        /// Its address.
        to: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The connection fails.
    #[error(transparent)]
    Protocol(#[from] protocol::Error),
    /// It has closed the connection.
    #[error("the server has closed the control connection")]
    Closed,
    /// It says why not.
    #[error("the server: {0}")]
    Refused(String),
    /// The answer to something else.
    #[error("the server answers {0:?}: run the same build on both nodes")]
    Odd(Answer),
}

/// A server that serves us.
#[derive(Debug)]
pub struct Control(TcpStream);

impl Control {
    /// Connects and is served; what the server says of its node.
    ///
    /// # Errors
    /// If it is not reached, is another version, or serves somebody else.
    pub fn connect(to: SocketAddr) -> Result<(Self, Node), Error> {
        let connect = || -> io::Result<TcpStream> {
            let mut stream = TcpStream::connect_timeout(&to, CONNECT_LIMIT)?;
            stream.set_nodelay(true)?;
            protocol::keep_alive(&stream)?;
            stream.set_write_timeout(Some(IDLE_LIMIT))?;
            stream.set_read_timeout(Some(ANSWER_LIMIT))?;
            stream.write_all(&Purpose::Control.bytes())?;
            Ok(stream)
        };
        let stream = connect().map_err(|source| Error::Connect { to, source })?;
        let mut control = Self(stream);
        match control.ask(&Request::Hello { version: VERSION })? {
            Answer::Hello(node) => Ok((control, node)),
            answer => Err(Error::Odd(answer)),
        }
    }

    /// Gives the server's agent another mode.
    ///
    /// # Errors
    /// If it has none, or that does not do it.
    pub fn mode(&mut self, mode: Mode) -> Result<(), Error> {
        match self.ask(&Request::Mode(mode))? {
            Answer::Mode(now) if now == mode => Ok(()),
            answer => Err(Error::Odd(answer)),
        }
    }

    /// What the server has counted.
    ///
    /// # Errors
    /// If its CPU time is not known, or the connection fails.
    pub fn counts(&mut self) -> Result<Counts, Error> {
        match self.ask(&Request::Counts)? {
            Answer::Counts(counts) => Ok(counts),
            answer => Err(Error::Odd(answer)),
        }
    }

    /// What its agent has counted, if it has one.
    ///
    /// # Errors
    /// If that does not answer, or the connection fails.
    pub fn fast_path(&mut self) -> Result<Option<FastPath>, Error> {
        match self.ask(&Request::FastPath)? {
            Answer::FastPath(fast_path) => Ok(fast_path),
            answer => Err(Error::Odd(answer)),
        }
    }

    /// Gives its agent back the mode that it had.
    ///
    /// # Errors
    /// If that does not take it, or the connection fails.
    pub fn restore(&mut self) -> Result<Option<Mode>, Error> {
        match self.ask(&Request::Restore)? {
            Answer::Restored(mode) => Ok(mode),
            answer => Err(Error::Odd(answer)),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Answer, Error> {
        protocol::write(&mut self.0, request)?;
        match protocol::read(&mut self.0)? {
            None => Err(Error::Closed),
            Some(Answer::Refused(why)) => Err(Error::Refused(why)),
            Some(answer) => Ok(answer),
        }
    }
}
