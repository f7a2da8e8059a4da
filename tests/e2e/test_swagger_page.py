"""The page of Swagger UI that the sample API serves, in a real headless browser."""

import uuid
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from lambda_pg_cdk.local.cloud import LocalCloud
from tests.support.browser import Seen, started


@pytest.fixture
def page() -> Iterator[Page]:
    """A browser's page."""
    with started() as browser:
        yield browser.new_page()


def test_requests_can_be_tried_on_the_page(cloud: LocalCloud, page: Page) -> None:
    """It shows each operation and sends one with a token. It loads nothing from another host."""
    seen = Seen()
    seen.follow(page)
    page.goto(f"{cloud.url}/swagger")
    expect(page.locator(".opblock")).to_have_count(4)

    page.get_by_role("button", name="Authorize").click()
    page.locator(".modal-ux input").fill(cloud.token(str(uuid.uuid4())))
    page.locator(".modal-ux button[type=submit]").click()
    page.locator(".modal-ux .btn-done").click()

    block = page.locator(".opblock-post")
    block.locator(".opblock-summary").click()
    block.get_by_role("button", name="Try it out").click()
    block.get_by_role("button", name="Execute").click()
    answer = block.locator(".live-responses-table .response")
    expect(answer.locator(".response-col_status")).to_contain_text("201")
    expect(answer).to_contain_text('"name": "Ada Lovelace"')

    asked = [url for url in seen.urls if not url.startswith("data:")]
    assert asked == [f"{cloud.url}/swagger", f"{cloud.url}/users"]
    assert seen.errors == []
