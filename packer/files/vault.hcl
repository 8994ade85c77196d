# Where a node keeps its secrets; addresses, peers and the seal arrive with the node.
storage "raft" {
  path = "/var/lib/vault/data"
}
