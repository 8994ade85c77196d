# A node of a cluster, other than the single agent of the default profile.
data_dir  = "/var/lib/nomad/data"
bind_addr = "0.0.0.0"
name      = ""
