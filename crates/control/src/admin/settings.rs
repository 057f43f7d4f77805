//! Settings of a tailnet.

use std::net::IpAddr;

use super::{AdminError, Desk, TailnetView, invalid, tailnet_view};
use crate::authority::{Right, Scope};
use crate::model::{DnsSettings, KeyLifetime, Nameserver, TailnetRecord};

/// Most resolvers of one list, domains of split DNS, and search domains. Clients hold all of them in memory.
const DNS_MAX: usize = 64;

impl Desk {
    /// Returns a tailnet.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub fn tailnet(&self, tailnet: &str) -> Result<TailnetView, AdminError> {
        Ok(tailnet_view(&self.place(tailnet, Scope::FeatureSettings.read())?.snapshot()))
    }

    /// Decides whether new nodes of a tailnet wait for approval.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub async fn set_machine_approval(&self, tailnet: &str, needed: bool) -> Result<TailnetView, AdminError> {
        let right = Scope::FeatureSettings.write();
        self.set(tailnet, right, "tailnet.machine-approval", move |record| record.machine_approval = needed).await
    }

    /// Decides how long keys of users' nodes are valid from their next login on; keys in use keep their end.
    ///
    /// # Errors
    /// [`AdminError::NotFound`]; [`AdminError::Invalid`] outside [`KeyLifetime::LEAST`] to [`KeyLifetime::MOST`].
    pub async fn set_key_lifetime(&self, tailnet: &str, lifetime: KeyLifetime) -> Result<TailnetView, AdminError> {
        if let KeyLifetime::Seconds(seconds) = lifetime
            && !(KeyLifetime::LEAST..=KeyLifetime::MOST).contains(&seconds)
        {
            return Err(invalid("lifetime of keys: an hour at least, ten years at most", &format!("{seconds} s")));
        }
        let right = Scope::FeatureSettings.write();
        self.set(tailnet, right, "tailnet.key-lifetime", move |record| record.key_lifetime = lifetime).await
    }

    /// Decides whether nodes of this program write down their connections for the collector; they learn of it at once.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub async fn set_flow_log(&self, tailnet: &str, on: bool) -> Result<TailnetView, AdminError> {
        let right = Scope::FeatureSettings.write();
        self.set(tailnet, right, "tailnet.flow-log", move |record| record.flow_log = on).await
    }

    /// Returns what nodes are told about names.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub fn dns(&self, tailnet: &str) -> Result<DnsSettings, AdminError> {
        Ok(self.place(tailnet, Scope::Dns.read())?.snapshot().tailnet.dns.clone())
    }

    /// Changes what nodes are told about names; they learn of it at once.
    ///
    /// # Errors
    /// [`AdminError::NotFound`]; [`AdminError::Invalid`] for what is no address, URL or domain, or too much.
    pub async fn set_dns(
        &self,
        tailnet: &str,
        edit: impl Fn(&mut DnsSettings) + Send + Sync + 'static,
    ) -> Result<DnsSettings, AdminError> {
        let place = self.place(tailnet, Scope::Dns.write())?;
        let who = place.who();
        place
            .change(move |work, _| {
                let mut record = (*work.state.tailnet).clone();
                edit(&mut record.dns);
                check(&mut record.dns)?;
                let after = record.dns.clone();
                if record != *work.state.tailnet {
                    work.put_tailnet(&who, "tailnet.dns", record);
                }
                Ok(after)
            })
            .await
    }

    /// Changes a setting of a tailnet.
    pub(super) async fn set(
        &self,
        tailnet: &str,
        right: Right,
        what: &'static str,
        edit: impl Fn(&mut TailnetRecord) + Send + Sync + 'static,
    ) -> Result<TailnetView, AdminError> {
        let place = self.place(tailnet, right)?;
        let who = place.who();
        place
            .change(move |work, _| {
                let mut record = (*work.state.tailnet).clone();
                edit(&mut record);
                if record != *work.state.tailnet {
                    work.put_tailnet(&who, what, record);
                }
                Ok(())
            })
            .await?;
        Ok(tailnet_view(&place.snapshot()))
    }
}

/// Brings domains into the form that clients compare, and refuses what they could not use.
fn check(dns: &mut DnsSettings) -> Result<(), AdminError> {
    let lists = || std::iter::once(&dns.nameservers).chain(dns.split.values());
    if let Some(list) = lists().find(|list| list.len() > DNS_MAX) {
        return Err(invalid("number of resolvers: 64 at most", &list.len().to_string()));
    }
    if let Some(server) = lists().flatten().find(|server| !is_resolver(server)) {
        return Err(invalid("resolver: write an IP address or https://HOST/PATH", &server.address));
    }
    if dns.split.len() > DNS_MAX || dns.search_paths.len() > DNS_MAX {
        return Err(invalid("number of domains: 64 at most", &dns.split.len().max(dns.search_paths.len()).to_string()));
    }
    let whole = |name: &String| {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        if is_domain(&name) { Ok(name) } else { Err(invalid("domain", &name)) }
    };
    dns.search_paths = dns.search_paths.iter().map(whole).collect::<Result<_, _>>()?;
    dns.split = dns
        .split
        .iter()
        .map(|(name, servers)| Ok((whole(name)?, servers.clone())))
        .collect::<Result<_, AdminError>>()?;
    Ok(())
}

fn is_resolver(server: &Nameserver) -> bool {
    let is_url = || {
        let text = &server.address;
        let uri: Option<http::Uri> = text.parse().ok();
        text.len() <= 512
            && uri.is_some_and(|uri| {
                uri.scheme_str() == Some("https")
                    && uri.host().is_some_and(|host| is_domain(host) || host.parse::<IpAddr>().is_ok())
            })
    };
    server.address.parse::<IpAddr>().is_ok() || is_url()
}

fn is_domain(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(edit: impl FnOnce(&mut DnsSettings)) -> Result<DnsSettings, AdminError> {
        let mut dns = DnsSettings::default();
        edit(&mut dns);
        check(&mut dns)?;
        Ok(dns)
    }

    fn server(address: &str) -> Nameserver {
        Nameserver { address: address.to_owned(), use_with_exit_node: false }
    }

    #[test]
    fn resolvers_are_addresses_or_urls_over_tls() {
        for good in ["1.1.1.1", "2606:4700::1111", "https://dns.example.com/q", "https://1.1.1.1/dns-query"] {
            assert!(with(|dns| dns.nameservers = vec![server(good)]).is_ok(), "{good}");
        }
        for bad in ["", "dns.example.com", "http://dns.example.com", "1.1.1.1:53", "https://", "https://-/x", "ftp://a"]
        {
            assert!(with(|dns| dns.nameservers = vec![server(bad)]).is_err(), "{bad}");
        }
        assert!(with(|dns| dns.nameservers = vec![server("1.1.1.1"); DNS_MAX + 1]).is_err());
    }

    #[test]
    fn domains_get_one_form() {
        let dns = with(|dns| {
            dns.search_paths = vec!["Corp.Example.".to_owned()];
            dns.split.insert("INTERNAL".to_owned(), vec![server("10.0.0.1")]);
        });
        let dns = dns.unwrap();
        assert_eq!(
            (dns.search_paths[0].as_str(), dns.split.keys().next().unwrap().as_str()),
            ("corp.example", "internal")
        );
        for bad in ["", ".", "a..b", "a b", "-a", "*.example.com", &"a.".repeat(128)] {
            assert!(with(|dns| dns.search_paths = vec![bad.to_owned()]).is_err(), "{bad:?}");
        }
    }
}
