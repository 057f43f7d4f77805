//! `warren debug`: helpers for people who look closely.

use clap::{Args, Subcommand};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use warren_node::via;

use crate::exit::{Exit, Failure};
use crate::output;

/// Commands of `warren debug`.
#[derive(Debug, Subcommand)]
pub(crate) enum Debug {
    /// Show the IPv6 network that stands for an IPv4 network at a site, or the other way round. A router offers it with
    /// `warren set --advertise-routes`, so that two sites may have the same IPv4 network.
    Via(Via),
}

/// What to translate.
#[derive(Debug, Args)]
pub(crate) struct Via {
    /// Number of the site, 0 to 65535, in decimal or as 0x…; or an IPv6 network, to be translated back.
    #[arg(value_name = "SITE|NETWORK6")]
    first: String,
    /// IPv4 network or address at the site.
    #[arg(value_name = "NETWORK")]
    net: Option<String>,
}

impl Debug {
    /// Runs the command.
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self::Via(Via { first, net }) = self;
        match net {
            Some(net) => output::line(to_v6(&first, &net)?),
            None => {
                let (site, net) = to_v4(&first)?;
                output::line(format_args!("site {site} (0x{site:x}), {net}"))
            }
        }
    }
}

fn to_v6(site: &str, net: &str) -> Result<Ipv6Net, Failure> {
    let number = match site.strip_prefix("0x") {
        Some(hex) => u16::from_str_radix(hex, 16),
        None => site.parse(),
    };
    let number = number
        .map_err(|_| Failure::new(Exit::Usage, format!("{site} is no site: write 0 to 65535, or 0x0 to 0xffff")))?;
    let wrong = || Failure::new(Exit::Usage, format!("{net} is no IPv4 network: write it as 10.0.0.0/24"));
    let net: Ipv4Net = match net.parse::<IpNet>() {
        Ok(IpNet::V4(net)) => net,
        Ok(IpNet::V6(_)) => return Err(wrong()),
        Err(_) => Ipv4Net::from(net.parse::<std::net::Ipv4Addr>().map_err(|_| wrong())?),
    };
    Ok(via::network(number.into(), net))
}

fn to_v4(net: &str) -> Result<(u32, Ipv4Net), Failure> {
    let parsed: Option<Ipv6Net> =
        net.parse().ok().or_else(|| net.parse::<std::net::Ipv6Addr>().ok().map(Ipv6Net::from));
    parsed.and_then(via::site).ok_or_else(|| {
        let form = format!(
            "{net} stands for no IPv4 network at a site; those begin with {} and have 96 bits at least",
            via::RANGE
        );
        Failure::new(Exit::Usage, form)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_translated_both_ways() {
        let six = "fd7a:115c:a1e0:b1a:0:7:a01:100/120";
        for (site, net) in [("7", "10.1.1.0/24"), ("0x7", "10.1.1.9/24")] {
            assert_eq!(to_v6(site, net).unwrap().to_string(), six);
        }
        assert_eq!(to_v6("7", "10.1.1.16").unwrap().to_string(), "fd7a:115c:a1e0:b1a:0:7:a01:110/128");
        assert_eq!(to_v4(six).unwrap(), (7, "10.1.1.0/24".parse().unwrap()));
        assert_eq!(to_v4("fd7a:115c:a1e0:b1a:0:7:a01:110").unwrap().1.to_string(), "10.1.1.16/32");
        for (site, net) in [("65536", "10.0.0.0/8"), ("x", "10.0.0.0/8"), ("7", "fd00::/64"), ("7", "10.0.0.0/33")] {
            assert!(to_v6(site, net).is_err(), "{site} {net}");
        }
        assert!(to_v4("fd7a:115c:a1e0:b1a::/64").is_err() && to_v4("10.0.0.0/8").is_err());
    }
}
