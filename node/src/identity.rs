//! Who a node is: its key, its account, and the account's word for it.
//!
//! On the first start both keys, the delegation and the API's token are made.
//! Afterwards the account's key may be kept elsewhere: the delegation speaks
//! for it. A delegation for another network or another node key is made anew
//! while the account's key is there, and refused otherwise.

use std::{path::PathBuf, time::Duration};

use suanli_protocol::{
    delegation::{Delegation, RawDelegation},
    envelope::{Envelope, EnvelopeError, Extensions, Signer, Verified},
    ids::{AccountId, NetworkId, PeerId, hex},
};

use crate::{
    data_dir::{
        DataDir, DataDirError, Secret, read_or_make_secret, read_secret, read_small, write_private,
    },
    wall::wall,
};

/// A node's keys and what goes with them.
#[derive(Clone)]
pub struct Identity {
    /// Signs for the node.
    pub node: Signer,
    /// The node's secret, for the transport's handshakes.
    pub node_secret: Secret,
    /// Whom the node acts for.
    pub account: AccountId,
    /// The account's word for it.
    pub delegation: RawDelegation,
    /// What the API's callers show.
    pub token: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({}, for {})", self.peer(), self.account)
    }
}

/// Why a node has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file can't be used.
    #[error(transparent)]
    File(#[from] DataDirError),
    /// No node ran here yet.
    #[error("{} holds no identity yet: `suanli node` makes one at its first start, or name another folder with --data-dir", .0.display())]
    None(PathBuf),
    /// The delegation is not this node's, and there is no account key to sign another.
    #[error(
        "{}: {message}; put account.key back beside it and start again, which signs a new one",
        path.display()
    )]
    Delegation {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The command and the node name different networks.
    #[error(
        "{}: it is for another network than this command names: name the node's with \
         --set network=NAME or its file with --config, or put account.key back beside it, \
         and `suanli node` signs one for this network",
        .0.display()
    )]
    OtherNetwork(PathBuf),
}

/// How long a delegation is meant. It ends earlier by a revocation.
const DELEGATION_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl Identity {
    /// What is in the data directory; what is missing is made.
    ///
    /// # Errors
    /// [`IdentityError`], with what to do.
    pub fn open_or_create(dir: &DataDir, network: NetworkId) -> Result<Self, IdentityError> {
        dir.create()?;
        let node_secret = read_or_make_secret(&dir.node_key())?;
        let node = Signer::new(&node_secret, network);
        let delegation = read_or_make_delegation(dir, &node)?;
        let token = read_or_make_secret(&dir.token())?;
        Ok(Self {
            account: delegation.header().signer.account(),
            delegation: delegation.raw(),
            node,
            node_secret,
            token: hex(token.as_slice()),
        })
    }

    /// What is in the data directory, without changing it.
    ///
    /// # Errors
    /// [`IdentityError`], with what to do.
    pub fn open(dir: &DataDir, network: NetworkId) -> Result<Self, IdentityError> {
        let none = || IdentityError::None(dir.root().to_owned());
        let node_secret = read_secret(&dir.node_key())?.ok_or_else(none)?;
        let node = Signer::new(&node_secret, network);
        let delegation = read_delegation(dir, &node)?.ok_or_else(none)?;
        let token = dir.read_token()?.ok_or_else(none)?;
        Ok(Self {
            account: delegation.header().signer.account(),
            delegation: delegation.raw(),
            node,
            node_secret,
            token,
        })
    }

    /// The node's name in the network.
    pub fn peer(&self) -> PeerId {
        self.node.public().peer()
    }
}

fn read_or_make_delegation(
    dir: &DataDir,
    node: &Signer,
) -> Result<Verified<Delegation>, IdentityError> {
    let kept = read_delegation(dir, node);
    let secret = match (kept, read_secret(&dir.account_key())?) {
        (Ok(Some(delegation)), _) => return Ok(delegation),
        (Ok(None), None) => read_or_make_secret(&dir.account_key())?,
        (
            Ok(None) | Err(IdentityError::Delegation { .. } | IdentityError::OtherNetwork(_)),
            Some(secret),
        ) => secret,
        (Err(error), _) => return Err(error),
    };
    let issued = wall();
    let delegation = Signer::new(&secret, node.network()).sign(
        issued,
        issued.after(DELEGATION_LIFE),
        Delegation {
            node: node.public().peer(),
            provides: true,
            consumes: true,
            extensions: Extensions::default(),
        },
    );
    write_private(&dir.delegation(), delegation.bytes())?;
    Ok(delegation)
}

fn read_delegation(
    dir: &DataDir,
    node: &Signer,
) -> Result<Option<Verified<Delegation>>, IdentityError> {
    let path = dir.delegation();
    let Some(bytes) = read_small(&path)? else {
        return Ok(None);
    };
    let envelope = Envelope::parse(&bytes).map_err(EnvelopeError::from);
    let delegation = envelope.and_then(|envelope| envelope.verify::<Delegation>(node.network()));
    let wrong = match delegation {
        Ok(delegation) if delegation.body().node != node.public().peer() => {
            "it is for another node key".to_owned()
        }
        Ok(delegation) if delegation.expires() <= wall() => "it has expired".to_owned(),
        Ok(delegation) => return Ok(Some(delegation)),
        Err(EnvelopeError::OtherNetwork(_)) => return Err(IdentityError::OtherNetwork(path)),
        Err(error) => error.to_string(),
    };
    Err(IdentityError::Delegation {
        path,
        message: wrong,
    })
}

#[cfg(test)]
mod tests {
    use suanli_protocol::delegation::Delegation;

    use super::*;

    fn network() -> NetworkId {
        NetworkId::of("suanli")
    }

    #[test]
    fn an_identity_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::new(folder.path().join("new"));
        assert!(matches!(
            Identity::open(&dir, network()),
            Err(IdentityError::None(_))
        ));
        let first = Identity::open_or_create(&dir, network()).unwrap();
        let again = Identity::open_or_create(&dir, network()).unwrap();
        assert_eq!(first.peer(), again.peer());
        assert_eq!(first.token, again.token);
        assert_eq!(first.delegation, again.delegation);
        let delegation = first.delegation.verify::<Delegation>(network()).unwrap();
        assert_eq!(delegation.body().node, first.peer());
        assert_eq!(delegation.header().signer.account(), first.account);
        assert_ne!(first.account.as_bytes(), first.peer().as_bytes());
    }

    #[test]
    fn the_accounts_key_may_be_kept_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::new(folder.path());
        let first = Identity::open_or_create(&dir, network()).unwrap();
        std::fs::remove_file(dir.account_key()).unwrap();
        let again = Identity::open_or_create(&dir, network()).unwrap();
        assert_eq!(again.account, first.account);
        assert!(!dir.account_key().exists());

        let other = Identity::open_or_create(&dir, NetworkId::of("other")).unwrap_err();
        assert!(
            other.to_string().contains("put account.key back"),
            "{other}"
        );
    }

    #[test]
    fn another_network_gets_a_delegation_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::new(folder.path());
        let first = Identity::open_or_create(&dir, network()).unwrap();
        let other = Identity::open_or_create(&dir, NetworkId::of("other")).unwrap();
        assert_eq!(other.account, first.account);
        assert_ne!(other.delegation, first.delegation);
    }

    #[test]
    fn abuse_64_a_world_readable_key_stops_the_start() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::new(folder.path());
        Identity::open_or_create(&dir, network()).unwrap();
        for path in [dir.node_key(), dir.account_key(), dir.token()] {
            let open = std::fs::Permissions::from_mode(0o644);
            std::fs::set_permissions(&path, open).unwrap();
            let refused = Identity::open_or_create(&dir, network()).unwrap_err();
            let mend = format!("chmod 600 {}", path.display());
            assert!(refused.to_string().contains(&mend), "{refused}");
            let closed = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(&path, closed).unwrap();
        }
    }
}
