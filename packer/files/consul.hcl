# Settings of a cluster node that differ from those of the single agent.
data_dir    = "/var/lib/consul/data"
bind_addr   = "{{ GetPrivateIP }}"
client_addr = "127.0.0.1"
