# A node of a cluster, other than the single agent of the default profile.
data_dir    = "/var/lib/consul/data"
bind_addr   = "{{ GetPrivateIP }}"
client_addr = "127.0.0.1"
