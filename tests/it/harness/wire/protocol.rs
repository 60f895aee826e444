//! PostgreSQL's messages, as far as the line has to read them. The head of a
//! message is held, the rest streams.

use std::collections::HashMap;
use std::io::{Error, ErrorKind, Result};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// As much of a message as is looked at.
pub const HEAD: usize = 64 << 10;
/// The longest start-up packet that a server takes.
const START_UP: usize = 10_000;

/// The codes of packets that come in place of a start-up.
pub const CANCEL: u32 = 80_877_102;
pub const SSL: u32 = 80_877_103;
pub const GSS: u32 = 80_877_104;

/// One way of a connection: what is read from one end and written to the other.
pub struct Way {
    from: BufReader<OwnedReadHalf>,
    to: BufWriter<OwnedWriteHalf>,
}

/// A message whose beginning was read.
pub struct Message {
    pub tag: u8,
    pub head: Vec<u8>,
    length: u32,
    rest: usize,
}

#[derive(PartialEq, Eq)]
enum Rest {
    Passes,
    Stays,
}

impl Way {
    pub fn new(from: OwnedReadHalf, to: OwnedWriteHalf) -> Self {
        Self { from: BufReader::with_capacity(HEAD, from), to: BufWriter::with_capacity(HEAD, to) }
    }

    /// The next message with its head; `None` at the end. Reads
    /// no more of it than that.
    pub async fn next(&mut self, looked_at: &[u8]) -> Result<Option<Message>> {
        if self.readable().await? == 0 {
            return Ok(None);
        }
        let tag = self.take(1).await?[0];
        let length = self.number().await?;
        let body = (length as usize).checked_sub(4).ok_or(ErrorKind::InvalidData)?;
        let held = if looked_at.contains(&tag) { body.min(HEAD) } else { 0 };
        let head = self.take(held).await?;
        Ok(Some(Message { tag, head, length, rest: body - held }))
    }

    /// Passes a message on, the part that was not read yet as it comes.
    pub async fn pass(&mut self, message: Message) -> Result<()> {
        self.to.write_u8(message.tag).await?;
        self.to.write_u32(message.length).await?;
        self.to.write_all(&message.head).await?;
        self.rest(message.rest, Rest::Passes).await
    }

    /// Reads a message to its end and keeps it back.
    pub async fn swallow(&mut self, message: Message) -> Result<()> {
        self.rest(message.rest, Rest::Stays).await
    }

    /// A packet as a connection begins with: its code and all of it.
    pub async fn start_up(&mut self) -> Result<(u32, Vec<u8>)> {
        let length = self.number().await?;
        let body = (length as usize).checked_sub(8).filter(|n| *n <= START_UP);
        let body = body.ok_or(ErrorKind::InvalidData)?;
        let code = self.number().await?;
        let mut packet = [length.to_be_bytes(), code.to_be_bytes()].concat();
        packet.extend(self.take(body).await?);
        Ok((code, packet))
    }

    /// Writes bytes of the line's own, at once.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.to.write_all(bytes).await?;
        self.to.flush().await
    }

    /// Sends what was passed on so far.
    pub async fn flush(&mut self) -> Result<()> {
        self.to.flush().await
    }

    /// Tells the other end that no more comes.
    pub async fn end(&mut self) {
        let _ = self.to.shutdown().await;
    }

    /// Passes bytes on to the end, whatever they are.
    pub async fn all(&mut self) -> Result<()> {
        tokio::io::copy_buf(&mut self.from, &mut self.to).await?;
        self.to.shutdown().await
    }

    /// Bytes that can be read now; before waiting for any, all that was passed
    /// on is sent.
    async fn readable(&mut self) -> Result<usize> {
        if self.from.buffer().is_empty() {
            self.to.flush().await?;
            self.from.fill_buf().await?;
        }
        Ok(self.from.buffer().len())
    }

    async fn number(&mut self) -> Result<u32> {
        let bytes = self.take(4).await?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    async fn take(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        let mut have = 0;
        while have < count {
            if self.readable().await? == 0 {
                return Err(Error::from(ErrorKind::UnexpectedEof));
            }
            have += self.from.read(&mut bytes[have..]).await?;
        }
        Ok(bytes)
    }

    async fn rest(&mut self, mut left: usize, what: Rest) -> Result<()> {
        while left > 0 {
            let count = self.readable().await?.min(left);
            if count == 0 {
                return Err(Error::from(ErrorKind::UnexpectedEof));
            }
            if what == Rest::Passes {
                self.to.write_all(&self.from.buffer()[..count]).await?;
            }
            self.from.consume(count);
            left -= count;
        }
        Ok(())
    }
}

/// A parameter of a start-up packet.
pub fn parameter(packet: &[u8], name: &str) -> Option<String> {
    let mut texts = packet.get(8..)?.split(|b| *b == 0).map(String::from_utf8_lossy);
    while let (Some(key), Some(value)) = (texts.next(), texts.next()) {
        if key == name {
            return Some(value.into_owned());
        }
    }
    None
}

/// The n-th text of a message that begins with texts.
pub fn text(head: &[u8], n: usize) -> String {
    let bytes = head.split(|b| *b == 0).nth(n).unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

/// The SQLSTATE of an ErrorResponse.
pub fn sqlstate(head: &[u8]) -> String {
    let fields = head.split(|b| *b == 0).filter_map(|f| f.strip_prefix(b"C"));
    fields.map(String::from_utf8_lossy).next().unwrap_or_default().into_owned()
}

/// A session's prepared statements and portals.
#[derive(Default)]
pub struct Prepared {
    statements: HashMap<String, String>,
    portals: HashMap<String, String>,
}

impl Prepared {
    /// Follows a message of the client; the SQL that it executes, if it does.
    pub fn follow(&mut self, message: &Message) -> Option<String> {
        let head = &message.head;
        match message.tag {
            b'Q' => return Some(text(head, 0)),
            b'P' => {
                self.statements.insert(text(head, 0), text(head, 1));
            }
            b'B' => {
                let sql = self.statements.get(&text(head, 1)).cloned().unwrap_or_default();
                self.portals.insert(text(head, 0), sql);
            }
            b'E' => return Some(self.portals.get(&text(head, 0)).cloned().unwrap_or_default()),
            b'C' if head.first() == Some(&b'S') => {
                self.statements.remove(&text(&head[1..], 0));
            }
            b'C' if head.first() == Some(&b'P') => {
                self.portals.remove(&text(&head[1..], 0));
            }
            _ => {}
        }
        None
    }
}
