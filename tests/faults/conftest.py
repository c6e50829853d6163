import pytest

from tests.jobs.conftest import leave
from tests.conftest import forget_s3, new_bucket
from tests.faults.proxy import Proxy, running

__all__ = ["leave"]


@pytest.fixture(scope="module")
def faulty_server(s3_server):
    """A proxy before the S3 server, which this process now takes for the server."""
    with running(Proxy(s3_server)) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.address)
        forget_s3()
        yield proxy
    forget_s3()


@pytest.fixture
def proxy(faulty_server):
    """The proxy, as yet without a fault."""
    faulty_server.forget()
    yield faulty_server
    faulty_server.forget()


@pytest.fixture
def bucket(proxy):
    """The URI of an empty bucket behind the proxy."""
    return new_bucket()
