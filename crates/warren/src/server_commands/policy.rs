//! `warren policy`: who may reach what.

use std::io::Read;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::Value;
use warren_control::admin_socket::AdminRequest;

use super::socket::Socket;
use crate::exit::{Exit, Failure, OrExit};
use crate::output;

/// Longest policy that is read; the server takes no more, either.
const MAX_BYTES: u64 = 512 * 1024;

/// Arguments of `warren policy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    socket: Socket,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    /// The network; needed if the server has several and none is called "default".
    #[arg(long, global = true, value_name = "NAME")]
    tailnet: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print the policy in force.
    Get,
    /// Check a policy file and put it in force.
    Set {
        /// The file, or `-` for standard input.
        file: PathBuf,
    },
}

impl Arguments {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self { socket, json, tailnet, verb } = self;
        match verb {
            Verb::Get => {
                let answer = socket.call(&AdminRequest::PolicyGet { tailnet })?;
                if json {
                    return output::json(&answer);
                }
                output::text(answer.get("text").and_then(Value::as_str).unwrap_or_default())
            }
            Verb::Set { file } => {
                let text = read(&file)?;
                let answer = socket.call(&AdminRequest::PolicySet { tailnet, text })?;
                if json {
                    return output::json(&answer);
                }
                let version = answer.get("version").map(Value::to_string).unwrap_or_default();
                output::line(format_args!("policy version {version} is in force"))
            }
        }
    }
}

fn read(file: &PathBuf) -> Result<String, Failure> {
    let doing = || format!("cannot read {}", file.display());
    let mut text = String::new();
    let count = if file.as_os_str() == "-" {
        std::io::stdin().lock().take(MAX_BYTES + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text))
    };
    let count = count.or_exit(Exit::General, doing())?;
    if count as u64 > MAX_BYTES {
        return Err(Failure::new(Exit::Usage, format_args!("{}: a policy is {MAX_BYTES} bytes at most", doing())));
    }
    Ok(text)
}
