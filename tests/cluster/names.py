"""What the tests of this folder and the replicas on their nodes call the same."""

B2_ADDRESS = "TEST_B2_ADDRESS"  # the variable with the address of the service that stands for B2
CHECKS = "checks"  # the file of a node that lists the attempts whose media were checked there
DRAWN = "drawn"  # the file of a node with a line for each segment drawn there: its frames
NODE = "TEST_NODE"  # the variable with the name of the node that a process belongs to
