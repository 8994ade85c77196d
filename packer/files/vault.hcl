# The storage of a node; addresses, peers and the seal arrive at its first boot.
storage "raft" {
  path                   = "/var/lib/vault/data"
  performance_multiplier = 1 # a new leader within a second; the default of 5 is for slow machines
}
