# Where a node keeps its secrets; addresses, peers and the seal arrive with the node.
storage "raft" {
  path                   = "/var/lib/vault/data"
  performance_multiplier = 1 # a new leader within a second; the default of 5 is for machines that are short of everything
}
