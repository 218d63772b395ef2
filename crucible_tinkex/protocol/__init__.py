"""The wire: what clients and servers say to each other, as JSON (`wire`) and protobuf (`proto`)."""
