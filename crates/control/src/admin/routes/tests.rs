//! Routes: approved by people, and what is shown of them.

use std::time::Duration;

use super::*;
use crate::admin::NewAuthKey;
use crate::testing::*;

fn prefixes(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn routes_are_approved_and_revoked() {
    let world = World::new().await;
    let admin = world.admin();
    world.join(1, NewAuthKey::default()).await;
    let approved = admin.approve_routes(None, "host1", &prefixes(&["10.1.2.3/8", "192.168.0.0/24"])).await.unwrap();
    assert_eq!(approved.approved_routes, prefixes(&["10.0.0.0/8", "192.168.0.0/24"]), "without host bits");
    assert_eq!(approved.offered_routes, []);
    let mut request = report(1, &[]);
    request.hostinfo.as_mut().unwrap().routable_ips = prefixes(&["10.0.0.0/8", "172.16.0.0/12"]);
    world.control.update(machine(1), request).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let shown = admin.node(None, "host1").unwrap();
    assert_eq!(shown.offered_routes, prefixes(&["10.0.0.0/8", "172.16.0.0/12"]));
    assert_eq!(shown.approved_routes, approved.approved_routes, "nobody approved the new one");
    let exit = admin.approve_routes(None, "host1", &prefixes(&["::/0"])).await.unwrap();
    assert!(prefixes(&["0.0.0.0/0", "::/0"]).iter().all(|route| exit.approved_routes.contains(route)));
    let revoked = admin.revoke_routes(None, "host1", &prefixes(&["0.0.0.0/0", "10.0.0.0/8"])).await.unwrap();
    assert_eq!(revoked.approved_routes, prefixes(&["192.168.0.0/24"]));
    let many: Vec<_> = (0..=1024_u16).map(|number| format!("10.{}.{}.0/24", number / 256, number % 256)).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert!(admin.approve_routes(None, "host1", &prefixes(&many)).await.is_err());
}
