# Settings of a cluster node that differ from those of the single agent.
data_dir  = "/var/lib/nomad/data"
bind_addr = "0.0.0.0"
name      = ""
