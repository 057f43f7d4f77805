//! `docs/deploy.md`, command by command: a document that is wrong fails here.

use super::Context;
use crate::fleet::{Invitation, Node, PATIENCE, Server};
use crate::lab::{Host, Lab, wait_for};
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::BTreeMap;

/// The document.
const TEXT: &str = include_str!("../../../docs/deploy.md");

/// What a block of the document is.
#[derive(Debug, PartialEq, Eq)]
enum Block {
    /// Commands on a machine, which work, or must fail.
    Commands { on: String, fail: bool, lines: Vec<String> },
    /// A file beside the server.
    File { name: String, text: String },
}

/// Reads the blocks that say where they belong: `sh on=MACHINE`, `sh on=MACHINE fails`, `json file=NAME`.
fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let body: Vec<String> = lines.by_ref().take_while(|line| *line != "```").map(str::to_owned).collect();
        let value = |key: &str| info.split_whitespace().find_map(|word| word.strip_prefix(key)).map(str::to_owned);
        if let Some(on) = value("on=") {
            let fail = info.split_whitespace().any(|word| word == "fails");
            let lines = body.into_iter().filter(|line| !line.trim().is_empty()).collect();
            blocks.push(Block::Commands { on, fail, lines });
        } else if let Some(name) = value("file=") {
            blocks.push(Block::File { name, text: body.join("\n") });
        }
    }
    blocks
}

/// The machines of the document.
struct World<'c> {
    context: &'c Context,
    server: Server,
    nodes: BTreeMap<String, Node>,
    hosts: BTreeMap<String, Host>,
    invitation: Option<Invitation>,
    lab: Lab,
}

impl<'c> World<'c> {
    /// Addresses are those of the document: the numbers of hosts and networks follow from their order here.
    fn start(context: &'c Context) -> Result<Self> {
        let mut lab = Lab::new("deploy", &["server", "desk", "office", "lyon", "turin"])?;
        let mut hosts: BTreeMap<String, Host> =
            ["desk", "office", "lyon", "turin"].map(|name| (name.to_owned(), lab.host(name))).into();
        for (router, name) in [("office", "files"), ("lyon", "till"), ("turin", "press")] {
            let router = lab.host(router);
            let host = lab.add_lan(&router, name)?;
            let [four, _] = router.lan();
            let gateway = four.replace("0/24", "1");
            host.run("ip").args(&format!("route add default via {gateway}")).output()?;
            // As a site's own gateway has it, by which its machines reach the server without us.
            lab.host("server").run("ip").args(&format!("route add {four} via {}", router.address)).output()?;
            hosts.insert(name.to_owned(), host);
        }
        let server = Server::start(&context.warren, &lab.host("server"), &[])?;
        Ok(Self { context, server, nodes: BTreeMap::new(), hosts, invitation: None, lab })
    }

    /// Runs a line as it stands in the document, but for keys and for where programs and sockets of the lab are.
    fn run(&mut self, on: &str, line: &str) -> Result<()> {
        let words = words(line);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match (on, words.as_slice()) {
            ("server", ["warren", "admin", "auth-key", "create", options @ ..]) => {
                self.invitation = Some(self.server.invite(options)?);
            }
            ("server", ["warren", "admin", words @ ..]) => drop(self.server.admin(words)?),
            ("server", ["warren", "policy", "set", file, options @ ..]) => {
                let file = self.lab.dir().join(file).to_string_lossy().into_owned();
                let words: Vec<&str> = ["set", &file].into_iter().chain(options.iter().copied()).collect();
                self.server.policy(&words)?;
            }
            ("server", _) => bail!("nobody knows how to run `{line}` on the server"),
            (_, ["warren", "up", options @ ..]) => {
                let invitation = self.invitation.as_ref().context("there is no auth key yet")?;
                let (key, pin) = (invitation.key.clone(), invitation.value("--server-key")?);
                let host = self.hosts.get(on).with_context(|| format!("there is no machine {on}"))?;
                let node = Node::start(&self.context.warren, host)?;
                let given = options.iter().map(|word| match *word {
                    "AUTH_KEY" => &key,
                    "SERVER_KEY" => &pin,
                    word => word,
                });
                // All machines of the lab have one name.
                let words = ["up", "--hostname", on, "--timeout", "30"].into_iter().chain(given).collect::<Vec<_>>();
                node.cli(&words)?;
                self.nodes.insert(on.to_owned(), node);
            }
            (_, ["warren", words @ ..]) => {
                let node = self.nodes.get(on).with_context(|| format!("{on} has not joined"))?;
                node.cli(words)?;
            }
            (_, [program, words @ ..]) => {
                let host = self.hosts.get(on).with_context(|| format!("there is no machine {on}"))?;
                let run = words.iter().fold(host.run(program), |run, word| run.arg(word));
                run.output()?;
            }
            (_, []) => {}
        }
        Ok(())
    }
}

/// Splits a line as a shell does, as far as the document needs it.
fn words(line: &str) -> Vec<String> {
    let parts = line.split('"').enumerate();
    let words = parts.flat_map(|(at, part)| match at % 2 {
        0 => part.split_whitespace().map(str::to_owned).collect(),
        _ => vec![part.to_owned()],
    });
    words.collect()
}

/// Runs the document from its beginning to its end.
pub(super) fn document(context: &Context) -> Result<()> {
    let blocks = blocks(TEXT);
    let mut world = World::start(context)?;
    let mut count = 0;
    for block in &blocks {
        match block {
            Block::File { name, text } => std::fs::write(world.lab.dir().join(name), text)?,
            Block::Commands { on, fail, lines } => {
                for line in lines {
                    count += 1;
                    let what = format!("`{line}` on {on}");
                    // What is seen follows what is said in a moment; what is said works at once.
                    if line.contains("ping ") {
                        wait_for(&what, PATIENCE, || (world.run(on, line).is_err() == *fail).then_some(()))?;
                    } else {
                        ensure!(!fail, "{what} changes something, and cannot be tried until it fails");
                        world.run(on, line).context(what)?;
                    }
                }
            }
        }
    }
    ensure!(count > 25, "only {count} commands were found in the document");
    println!("        {count} commands of docs/deploy.md");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_say_where_they_belong() {
        let text = "x\n```sh on=a fails\none\n\ntwo \"b c\"\n```\n```sh\nno\n```\n```json file=f\n{\n}\n```\n";
        let lines = vec!["one".to_owned(), "two \"b c\"".to_owned()];
        let commands = Block::Commands { on: "a".into(), fail: true, lines };
        assert_eq!(blocks(text), [commands, Block::File { name: "f".into(), text: "{\n}".into() }]);
        assert_eq!(words("two \"b c\" d"), ["two", "b c", "d"]);
    }
}
